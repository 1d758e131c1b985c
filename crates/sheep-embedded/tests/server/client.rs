//! A server under test, and a client that only sends and reads frames.

use std::io::{self, Read, Write};
use std::net::{Ipv4Addr, SocketAddr, TcpStream};
use std::time::Duration;

use sheep_embedded::{Config, Server, StoreKind};
use sheep_proto::inode::slot_offset;
use sheep_proto::limits::{HEADER_LEN, NAME_FIELD_LEN, VID_BITMAP_LEN};
use sheep_proto::vid_bitmap::VidBitmap;
use sheep_proto::{
    ClusterFlags, ClusterRequest, InodeHeader, ObjectIndex, ObjectRequest, Oid, Opcode,
    RequestBody, RequestFlags, RequestHeader, ResponseBody, ResponseHeader, ResultCode, VdiRequest,
    Vid,
};
use tokio::runtime::Runtime;
use zerocopy::{FromBytes, IntoBytes};

/// No response takes longer than this.
const TIMEOUT: Duration = Duration::from_secs(20);

/// Bytes of the objects of a VDI made by [`Client::new_vdi`].
pub(crate) const OBJECT_LEN: usize = 4 << 20;

/// A running server in a runtime of its own.
pub(crate) struct Sheep {
    runtime: Runtime,
    server: Option<Server>,
    address: SocketAddr,
    directory: Option<tempfile::TempDir>,
}

impl Sheep {
    /// One server on each kind of store, named.
    pub(crate) fn for_each_store() -> [(&'static str, Self); 2] {
        [
            ("memory", Self::in_memory()),
            ("directory", Self::in_directory()),
        ]
    }

    pub(crate) fn in_memory() -> Self {
        Self::start(None, |_| {})
    }

    pub(crate) fn in_directory() -> Self {
        Self::start(Some(tempfile::tempdir().unwrap()), |_| {})
    }

    pub(crate) fn start(
        directory: Option<tempfile::TempDir>,
        change: impl FnOnce(&mut Config),
    ) -> Self {
        let store = match &directory {
            Some(directory) => StoreKind::Directory(directory.path().to_path_buf()),
            None => StoreKind::Memory,
        };
        let mut config = Config::new(store);
        change(&mut config);
        let runtime = Runtime::new().unwrap();
        let server = runtime.block_on(Server::start(config)).unwrap();
        Self {
            address: server.local_address(),
            runtime,
            server: Some(server),
            directory,
        }
    }

    pub(crate) fn address(&self) -> SocketAddr {
        self.address
    }

    pub(crate) fn connect(&self) -> Client {
        Client::connect(self.address)
    }

    /// Stops the server; returns its directory.
    pub(crate) fn stop(mut self) -> Option<tempfile::TempDir> {
        let server = self.server.take().unwrap();
        self.runtime.block_on(server.shutdown()).unwrap();
        self.directory.take()
    }

    pub(crate) fn server(&self) -> &Server {
        self.server.as_ref().unwrap()
    }

    /// Waits until a request has ended the node; returns why.
    pub(crate) fn wait_for_end(&self) -> String {
        let server = self.server();
        let ended = async {
            tokio::time::timeout(TIMEOUT, server.shutdown_requested())
                .await
                .unwrap();
            server.death().unwrap()
        };
        self.runtime.block_on(ended)
    }

    /// Another node on the same store.
    pub(crate) fn add_node(&self) -> Self {
        self.add_node_at((Ipv4Addr::LOCALHOST, 0).into())
    }

    pub(crate) fn add_node_at(&self, address: SocketAddr) -> Self {
        let runtime = Runtime::new().unwrap();
        let server = runtime.block_on(self.server().add_node(address)).unwrap();
        Self {
            address: server.local_address(),
            runtime,
            server: Some(server),
            directory: None,
        }
    }

    pub(crate) fn kill(mut self) {
        self.runtime.block_on(self.server.take().unwrap().kill());
    }

    /// Stops the server and starts another one on its directory.
    pub(crate) fn restart(self) -> Self {
        let directory = self.stop();
        assert!(directory.is_some(), "memory does not survive");
        Self::start(directory, |_| {})
    }

    pub(crate) fn path(&self) -> &std::path::Path {
        self.directory.as_ref().unwrap().path()
    }
}

/// One connection, one request at a time unless the parts are used alone.
pub(crate) struct Client {
    stream: TcpStream,
    next_id: u32,
}

/// A response.
#[derive(Debug)]
pub(crate) struct Response {
    pub(crate) header: ResponseHeader,
    pub(crate) payload: Vec<u8>,
}

impl Response {
    pub(crate) fn result(&self) -> ResultCode {
        self.header.result()
    }

    pub(crate) fn vid(&self) -> Vid {
        assert_eq!(self.result(), ResultCode::Success);
        match self.header.body() {
            ResponseBody::Vdi(body) => Vid::new(body.vdi_id.get()).unwrap(),
            other => panic!("no VDI in {other:?}"),
        }
    }
}

impl Client {
    pub(crate) fn connect(address: SocketAddr) -> Self {
        let stream = TcpStream::connect(address).unwrap();
        stream.set_nodelay(true).unwrap();
        stream.set_read_timeout(Some(TIMEOUT)).unwrap();
        stream.set_write_timeout(Some(TIMEOUT)).unwrap();
        Self { stream, next_id: 1 }
    }

    pub(crate) fn stream(&mut self) -> &mut TcpStream {
        &mut self.stream
    }

    /// Sends a frame with the next id; returns the id.
    pub(crate) fn send(&mut self, header: RequestHeader, payload: &[u8]) -> io::Result<u32> {
        let id = self.next_id;
        self.next_id += 1;
        let header = RequestHeader {
            id: id.into(),
            ..header
        };
        self.stream
            .write_all(&[header.as_bytes(), payload].concat())?;
        Ok(id)
    }

    pub(crate) fn receive(&mut self) -> io::Result<Response> {
        let mut bytes = [0; HEADER_LEN];
        self.stream.read_exact(&mut bytes)?;
        let header = ResponseHeader::read_from_bytes(&bytes).unwrap();
        let mut payload = vec![0; header.data_length.get() as usize];
        self.stream.read_exact(&mut payload)?;
        Ok(Response { header, payload })
    }

    pub(crate) fn try_call(
        &mut self,
        header: RequestHeader,
        payload: &[u8],
    ) -> io::Result<Response> {
        let id = self.send(header, payload)?;
        let response = self.receive()?;
        assert_eq!(response.header.id.get(), id);
        assert_eq!(response.header.opcode, header.opcode);
        assert_eq!(
            (response.header.proto_ver, response.header.flags.get()),
            (0, 0)
        );
        Ok(response)
    }

    pub(crate) fn call(&mut self, header: RequestHeader, payload: &[u8]) -> Response {
        self.try_call(header, payload).unwrap()
    }

    /// A request without payload that is ready to receive `want` bytes.
    pub(crate) fn request(&mut self, opcode: Opcode, want: usize, body: RequestBody) -> Response {
        let want = u32::try_from(want).unwrap();
        self.call(
            RequestHeader::new(opcode, RequestFlags::empty(), want, body),
            &[],
        )
    }

    /// As [`Self::request`], with flags.
    pub(crate) fn request_with_flags(
        &mut self,
        opcode: Opcode,
        flags: RequestFlags,
        want: usize,
        body: RequestBody,
    ) -> Response {
        let want = u32::try_from(want).unwrap();
        self.call(RequestHeader::new(opcode, flags, want, body), &[])
    }

    /// A request with a payload.
    pub(crate) fn write_request(
        &mut self,
        opcode: Opcode,
        flags: RequestFlags,
        body: RequestBody,
        payload: &[u8],
    ) -> Response {
        let len = u32::try_from(payload.len()).unwrap();
        let header = RequestHeader::new(opcode, flags | RequestFlags::WRITE, len, body);
        self.call(header, payload)
    }

    pub(crate) fn try_write_request(
        &mut self,
        opcode: Opcode,
        body: RequestBody,
        payload: &[u8],
    ) -> io::Result<Response> {
        let len = u32::try_from(payload.len()).unwrap();
        let header = RequestHeader::new(opcode, RequestFlags::WRITE, len, body);
        self.try_call(header, payload)
    }

    pub(crate) fn read(&mut self, oid: Oid, offset: u32, want: usize) -> Response {
        let want = u32::try_from(want).unwrap();
        let body = object(oid, offset);
        let mut header = RequestHeader::new(Opcode::ReadObj, RequestFlags::empty(), want, body);
        // In the version after this one 0.7 leaves zeros out.
        header.proto_ver = 1;
        self.call(header, &[])
    }

    /// The bytes of a range that must be there.
    pub(crate) fn bytes(&mut self, oid: Oid, offset: u32, want: usize) -> Vec<u8> {
        let response = self.read(oid, offset, want);
        assert_eq!(response.result(), ResultCode::Success, "{oid}");
        assert_eq!(response.payload.len(), want);
        response.payload
    }

    pub(crate) fn write(&mut self, oid: Oid, offset: u32, data: &[u8]) -> ResultCode {
        self.write_request(
            Opcode::WriteObj,
            RequestFlags::empty(),
            object(oid, offset),
            data,
        )
        .result()
    }

    pub(crate) fn create(&mut self, oid: Oid, offset: u32, data: &[u8]) -> ResultCode {
        self.write_request(
            Opcode::CreateAndWriteObj,
            RequestFlags::empty(),
            object(oid, offset),
            data,
        )
        .result()
    }

    pub(crate) fn create_from(
        &mut self,
        oid: Oid,
        source: Oid,
        offset: u32,
        data: &[u8],
    ) -> ResultCode {
        let body = RequestBody::Object(ObjectRequest {
            oid: oid.raw().into(),
            cow_oid: source.raw().into(),
            offset: offset.into(),
            ..ObjectRequest::default()
        });
        self.write_request(Opcode::CreateAndWriteObj, RequestFlags::COW, body, data)
            .result()
    }

    pub(crate) fn discard(&mut self, oid: Oid) -> ResultCode {
        self.request(Opcode::DiscardObj, 0, object(oid, 0)).result()
    }

    pub(crate) fn exists(&mut self, oid: Oid) -> bool {
        match self.request(Opcode::Exist, 0, object(oid, 0)).result() {
            ResultCode::Success => true,
            ResultCode::NoObj => false,
            other => panic!("EXIST of {oid}: {other}"),
        }
    }

    pub(crate) fn set_slot(&mut self, vid: Vid, index: u32, owner: Option<Vid>) -> ResultCode {
        let offset = slot_offset(ObjectIndex(index)).unwrap();
        let owner = owner.map_or(0, Vid::get);
        self.write(Oid::inode(vid), offset, &owner.to_le_bytes())
    }

    pub(crate) fn slot(&mut self, vid: Vid, index: u32) -> Option<Vid> {
        let offset = slot_offset(ObjectIndex(index)).unwrap();
        let bytes = self.bytes(Oid::inode(vid), offset, 4);
        Vid::new(u32::from_le_bytes(bytes.try_into().unwrap()))
    }

    /// The requests of a first write to an object.
    pub(crate) fn first_write(&mut self, vid: Vid, index: u32, data: &[u8]) {
        assert_eq!(
            self.create(data_oid(vid, index), 0, data),
            ResultCode::Success
        );
        assert_eq!(self.set_slot(vid, index, Some(vid)), ResultCode::Success);
    }

    /// The requests of a first write to an object that `source` owns.
    pub(crate) fn copy_on_write(&mut self, vid: Vid, source: Vid, index: u32, data: &[u8]) {
        let (oid, source) = (data_oid(vid, index), data_oid(source, index));
        assert_eq!(self.create_from(oid, source, 0, data), ResultCode::Success);
        assert_eq!(self.set_slot(vid, index, Some(vid)), ResultCode::Success);
    }

    pub(crate) fn header_of(&mut self, vid: Vid) -> InodeHeader {
        let bytes = self.bytes(Oid::inode(vid), 0, size_of::<InodeHeader>());
        InodeHeader::read_from_bytes(&bytes).unwrap()
    }

    pub(crate) fn create_vdi(&mut self, name: &str, request: VdiRequest) -> Response {
        let body = RequestBody::Vdi(request);
        self.write_request(
            Opcode::NewVdi,
            RequestFlags::empty(),
            body,
            &name_field(name),
        )
    }

    /// A VDI of 64 MiB.
    pub(crate) fn new_vdi(&mut self, name: &str) -> Vid {
        self.create_vdi(name, sized()).vid()
    }

    /// Tags the working VDI and makes a snapshot of it; returns the new working VDI.
    pub(crate) fn snapshot(&mut self, name: &str, vid: Vid, tag: &str) -> Vid {
        assert_eq!(
            self.write(Oid::inode(vid), 256, &name_field(tag)),
            ResultCode::Success
        );
        self.create_vdi(name, based_on(vid, 1)).vid()
    }

    pub(crate) fn clone_vdi(&mut self, name: &str, base: Vid) -> Vid {
        self.create_vdi(name, based_on(base, 0)).vid()
    }

    /// An operation on a VDI found by name, tag and snapshot id.
    pub(crate) fn vdi_request(
        &mut self,
        opcode: Opcode,
        name: &str,
        tag: &str,
        snapid: u32,
    ) -> Response {
        let body = RequestBody::Vdi(VdiRequest {
            snapid: snapid.into(),
            ..VdiRequest::default()
        });
        let payload = [name_field(name), name_field(tag)].concat();
        self.write_request(opcode, RequestFlags::empty(), body, &payload)
    }

    pub(crate) fn vids(&mut self, opcode: Opcode) -> Vec<u32> {
        let response = self.request(opcode, VID_BITMAP_LEN, RequestBody::NONE);
        let bitmap = VidBitmap::parse(response.payload).unwrap();
        bitmap.iter().map(Vid::get).collect()
    }

    pub(crate) fn format(&mut self, flags: ClusterFlags, copies: u8) -> ResultCode {
        let body = RequestBody::Cluster(ClusterRequest {
            ctime: (1_700_000_000u64 << 32).into(),
            copies,
            cluster_flags: flags.bits().into(),
            ..ClusterRequest::default()
        });
        self.write_request(Opcode::MakeFs, RequestFlags::empty(), body, b"plain\0")
            .result()
    }
}

pub(crate) fn object(oid: Oid, offset: u32) -> RequestBody {
    RequestBody::Object(ObjectRequest {
        oid: oid.raw().into(),
        offset: offset.into(),
        ..ObjectRequest::default()
    })
}

pub(crate) fn data_oid(vid: Vid, index: u32) -> Oid {
    Oid::data(vid, ObjectIndex(index))
}

pub(crate) fn name_field(text: &str) -> [u8; NAME_FIELD_LEN] {
    let mut field = [0; NAME_FIELD_LEN];
    field[..text.len()].copy_from_slice(text.as_bytes());
    field
}

pub(crate) fn sized() -> VdiRequest {
    VdiRequest {
        vdi_size: (64u64 << 20).into(),
        ..VdiRequest::default()
    }
}

pub(crate) fn based_on(base: Vid, snapid: u32) -> VdiRequest {
    VdiRequest {
        base_vdi_id: base.get().into(),
        snapid: snapid.into(),
        ..sized()
    }
}
