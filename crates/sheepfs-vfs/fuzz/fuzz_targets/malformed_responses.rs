//! Responses of any content: reports are rendered, and a volume is opened, read, written,
//! discarded and flushed.

#![no_main]

use bytes::Bytes;
use libfuzzer_sys::fuzz_target;
use sheep_client::VdiSelector;
use sheep_proto::VdiName;
use sheepfs_vfs::report::{Format, Report};
use sheepfs_vfs::{BlockDevice as _, Volume, VolumeOptions};

mod malformed_transport;

const REPORTS: [Report; 4] = [
    Report::ClusterInfo,
    Report::NodeInfo,
    Report::NodeList,
    Report::VdiList,
];

fuzz_target!(|input: &[u8]| {
    let Some((&action, responses)) = input.split_first() else {
        return;
    };
    malformed_transport::run(responses, |tree| async move {
        let client = tree.client().clone();
        if let Some(report) = REPORTS.get(usize::from(action)) {
            for format in [Format::Text, Format::Json] {
                // An error is fine, a panic is not.
                let _ = report.render(format, &client).await;
            }
            return;
        }
        let name = VdiName::new("a").expect("a name");
        let options = VolumeOptions::default().with_read_only(action & 0x10 != 0).with_lock(action & 0x20 != 0);
        let Ok(volume) = Volume::open(client, VdiSelector::working(name), options).await else {
            return;
        };
        let size = volume.size();
        let offset = size / 256 * u64::from(action);
        if let Ok(bytes) = volume.read_at(offset, 5000).await {
            assert_eq!(bytes.len() as u64, size.saturating_sub(offset).min(5000));
        }
        let _ = volume
            .write_at(offset, Bytes::from_static(&[7; 5000]))
            .await;
        let _ = volume.discard(offset, 1 << 21).await;
        let _ = (
            volume.seek_data(offset),
            volume.seek_hole(offset),
            volume.allocated(),
        );
        let _ = (volume.revalidate_header().await, volume.revalidate().await);
        let _ = (volume.flush().await, volume.close().await);
    });
});
