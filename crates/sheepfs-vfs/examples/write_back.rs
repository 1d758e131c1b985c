//! A write-back cache over a block device: many small writes become few large ones,
//! and an error of one of them reaches every writer.
//!
//! ```sh
//! cargo run --example write_back
//! ```

use sheepfs_vfs::BlockDevice as _;
use sheepfs_vfs::volume::{MemoryDevice, WriteBack};

#[tokio::main]
async fn main() -> anyhow::Result<()> {
    let device = MemoryDevice::new(vec![0; 1 << 20]);
    let cache = WriteBack::new(device.clone(), "memory".to_owned());
    let (first, second) = (cache.open(), cache.open());
    for block in 0..256u64 {
        let writer = if block % 2 == 0 { &first } else { &second };
        let data = [block.to_le_bytes()[0]; 4096];
        // Acknowledged before it is on the device.
        writer.submit_write(block * 4096, &data, |taken| {
            assert_eq!(taken.ok(), Some(4096));
        });
    }
    first.sync().await?;
    second.sync().await?;
    let bytes = device.read_at(17 * 4096, 4096).await?;
    println!("block 17 holds {} everywhere", bytes[0]);
    anyhow::ensure!(bytes.iter().all(|&byte| byte == 17));
    Ok(())
}
