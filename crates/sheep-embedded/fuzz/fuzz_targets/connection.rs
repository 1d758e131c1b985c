//! Any bytes on a connection: no panic, and the next client is served.
#![no_main]

use std::io::{Read, Write};
use std::net::{Shutdown, TcpStream};

use libfuzzer_sys::fuzz_target;
use sheep_embedded::{Config, Server, StoreKind};
use tokio::runtime::Runtime;

/// GET_CLUSTER_DEFAULT.
const QUESTION: [u8; 48] = {
    let mut header = [0; 48];
    header[0] = 2;
    header[1] = 0x18;
    header
};

fuzz_target!(|bytes: &[u8]| {
    let runtime = Runtime::new().expect("a runtime");
    let mut config = Config::new(StoreKind::Memory);
    config.memory_limit = 64 << 20;
    let server = runtime.block_on(Server::start(config)).expect("a server");
    let mut stream = TcpStream::connect(server.local_address()).expect("a connection");
    // Closed early is an answer too.
    let _sent = stream.write_all(bytes);
    let _half_closed = stream.shutdown(Shutdown::Write);
    let _read = stream.read_to_end(&mut Vec::new());
    // SHUTDOWN and KILL_NODE end it, which is no failure.
    if let Ok(mut next) = TcpStream::connect(server.local_address())
        && next.write_all(&QUESTION).is_ok()
    {
        let _answer = next.read(&mut [0; 48]);
    }
    let ended = runtime.block_on(server.shutdown());
    ended.expect("a clean end");
});
