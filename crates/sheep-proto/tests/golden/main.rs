//! Frames that real clients and a real server exchanged, decoded and encoded again.

#![expect(
    clippy::unwrap_used,
    reason = "everything here is a test, and a damaged capture must fail it"
)]

mod capture;
mod clusters;
mod frames;
mod generations;
mod payload;
mod placement;
mod volumes;

#[test]
fn captures_are_complete_and_unchanged() {
    assert_eq!(capture::captures().len(), 20);
    let (mut frames, mut with_payload, mut cut) = (0, 0, 0);
    for frame in capture::all_frames() {
        frames += 1;
        with_payload += usize::from(frame.payload.len > 0);
        if frame.payload.cut {
            cut += 1;
        } else {
            assert!(frame.payload.is_authentic(), "{}", frame.place());
        }
    }
    assert_eq!((frames, with_payload, cut), (1387, 605, 9));
}
