//! The handshake phase of a connection.

use std::sync::Arc;

use bytes::{Bytes, BytesMut};
use tokio::io::{AsyncRead, AsyncReadExt as _, AsyncWrite, AsyncWriteExt as _};
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use super::error::{ConnectionError, unless_late};
use super::session::Selected;
use crate::export::{ContextQuery, Description, Export, ExportError, Exports};
use crate::protocol::error::ProtocolError;
use crate::protocol::flags::{ClientFlags, TransmissionFlags};
use crate::protocol::handshake::{
    self, BadOption, CLIENT_FLAGS_LEN, ContextRequest, InfoRequest, OPTION_HEADER_LEN, OptionError,
    OptionHeader, OptionReply, OptionRequest,
};
use crate::protocol::limits::{MAX_CONTEXTS, MAX_OPTION_LEN, MAX_OPTIONS};
use crate::protocol::reply::ReplyStyle;

/// The context of every export.
const ALLOCATION: &[u8] = b"base:allocation";
const TLS_REQUIRED: &str = "this server requires TLS";
/// Replies are sent when so many bytes are buffered.
const SEND_LEN: usize = 64 << 10;

/// The negotiated export, reply style and contexts.
pub(super) struct Negotiated<E: Export> {
    pub(super) name: Bytes,
    pub(super) export: Arc<E>,
    pub(super) style: ReplyStyle,
    pub(super) contexts: Vec<Selected<E::Context>>,
}

/// Whether the server uses TLS.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Tls {
    /// The server has no certificate.
    Unavailable,
    /// The client must start it before any other option.
    Required,
    /// The handshake is encrypted.
    Active,
}

/// How a handshake ends.
pub(super) enum Outcome<E: Export> {
    /// With a TLS handshake, then another NBD handshake.
    StartTls(ClientFlags),
    /// With the transmission phase.
    Transmit(Negotiated<E>),
    /// The client aborted.
    Ended,
}

/// The last selection of contexts, and its export.
struct Selection {
    export: Bytes,
    names: Vec<Bytes>,
}

/// An error reply to an option, with the text for the client.
struct Refusal(OptionError, String);

impl From<ExportError> for Refusal {
    fn from(error: ExportError) -> Self {
        Self(error.code(), error.to_string())
    }
}

impl From<BadOption> for Refusal {
    fn from(error: BadOption) -> Self {
        let code = match error {
            BadOption::Invalid(_) => OptionError::Invalid,
            BadOption::TooBig(_) => OptionError::TooBig,
        };
        Self(code, error.to_string())
    }
}

/// What to do after an option.
enum Next<E: Export> {
    /// Read another one.
    Continue,
    End(Outcome<E>),
}

/// The server's side of a handshake.
pub(super) struct Handshake<'a, S, X: Exports> {
    stream: &'a mut S,
    exports: &'a X,
    shutdown: &'a CancellationToken,
    /// When the client must have chosen an export.
    deadline: Instant,
    client: ClientFlags,
    tls: Tls,
    style: ReplyStyle,
    selection: Option<Selection>,
    out: BytesMut,
}

impl<'a, S: AsyncRead + AsyncWrite + Unpin, X: Exports> Handshake<'a, S, X> {
    /// Sends the greeting and reads the flags of the client.
    ///
    /// # Errors
    /// If they are invalid.
    pub(super) async fn begin(
        stream: &'a mut S,
        exports: &'a X,
        shutdown: &'a CancellationToken,
        deadline: Instant,
        tls: Tls,
    ) -> Result<Self, ConnectionError> {
        unless_late(deadline, stream.write_all(&handshake::greeting())).await?;
        let mut flags = [0; CLIENT_FLAGS_LEN];
        unless_late(deadline, stream.read_exact(&mut flags)).await?;
        let client = handshake::client_flags(flags)?;
        Ok(Self::resume(
            stream, exports, shutdown, deadline, tls, client,
        ))
    }

    /// Starts again inside TLS. Nothing that the client sent before counts, except its
    /// flags.
    pub(super) fn resume(
        stream: &'a mut S,
        exports: &'a X,
        shutdown: &'a CancellationToken,
        deadline: Instant,
        tls: Tls,
        client: ClientFlags,
    ) -> Self {
        Self {
            client,
            stream,
            exports,
            shutdown,
            deadline,
            tls,
            style: ReplyStyle::Simple,
            selection: None,
            out: BytesMut::new(),
        }
    }

    /// Handles options until the client selects an export or aborts.
    ///
    /// # Errors
    /// If the client violates the protocol, or `EXPORT_NAME` fails.
    pub(super) async fn run(&mut self) -> Result<Outcome<X::Export>, ConnectionError> {
        for _ in 0..MAX_OPTIONS {
            let mut header = [0; OPTION_HEADER_LEN];
            unless_late(self.deadline, self.stream.read_exact(&mut header)).await?;
            let OptionHeader { option, len } = OptionHeader::parse(&header)?;
            let next = match self.read(option, len).await? {
                Ok(request) => self.answer(option, request).await?,
                Err(refusal) => {
                    self.refuse(option, &refusal);
                    Next::Continue
                }
            };
            self.send().await?;
            if let Next::End(outcome) = next {
                return Ok(outcome);
            }
        }
        Err(ProtocolError::TooManyOptions.into())
    }

    /// Reads all data of an option, also if they are invalid.
    async fn read(
        &mut self,
        option: u32,
        len: u32,
    ) -> Result<Result<OptionRequest, Refusal>, ConnectionError> {
        if len > MAX_OPTION_LEN {
            let mut data = (&mut *self.stream).take(u64::from(len));
            let mut sink = tokio::io::sink();
            unless_late(self.deadline, tokio::io::copy(&mut data, &mut sink)).await?;
            let why = format!("the option has more than {MAX_OPTION_LEN} bytes");
            return Ok(Err(Refusal(OptionError::TooBig, why)));
        }
        let mut data = vec![0; len as usize];
        unless_late(self.deadline, self.stream.read_exact(&mut data)).await?;
        Ok(OptionRequest::parse(option, data.into()).map_err(Refusal::from))
    }

    async fn answer(
        &mut self,
        option: u32,
        request: OptionRequest,
    ) -> Result<Next<X::Export>, ConnectionError> {
        if self.shutdown.is_cancelled() && !matches!(request, OptionRequest::Abort) {
            let why = "the server is shutting down".to_owned();
            self.refuse(option, &Refusal(OptionError::Shutdown, why));
            return Ok(Next::End(Outcome::Ended));
        }
        let answered = match request {
            OptionRequest::Abort => {
                self.reply(option, &OptionReply::Ack);
                return Ok(Next::End(Outcome::Ended));
            }
            OptionRequest::StartTls if self.tls == Tls::Required => {
                self.reply(option, &OptionReply::Ack);
                return Ok(Next::End(Outcome::StartTls(self.client)));
            }
            OptionRequest::ExportName(_) if self.tls == Tls::Required => {
                return Err(ConnectionError::Export(TLS_REQUIRED.to_owned()));
            }
            _ if self.tls == Tls::Required => {
                Err(Refusal(OptionError::TlsRequired, TLS_REQUIRED.to_owned()))
            }
            OptionRequest::StartTls if self.tls == Tls::Active => Err(Refusal(
                OptionError::Invalid,
                "TLS is in use already".to_owned(),
            )),
            OptionRequest::ExportName(name) => return self.export_name(name).await.map(Next::End),
            OptionRequest::Go(info) => match self.go(option, &info).await {
                Ok(negotiated) => return Ok(Next::End(Outcome::Transmit(negotiated))),
                Err(refusal) => Err(refusal),
            },
            OptionRequest::Info(info) => self.info(option, &info).await,
            OptionRequest::List => self.list(option).await?,
            OptionRequest::StartTls => Err(Refusal(
                OptionError::Policy,
                "this server has no certificate for TLS".to_owned(),
            )),
            OptionRequest::StructuredReply if self.style == ReplyStyle::Extended => Err(Refusal(
                OptionError::ExtendedHeadersRequired,
                "extended headers were negotiated".to_owned(),
            )),
            OptionRequest::StructuredReply => {
                self.style = ReplyStyle::Structured;
                Ok(())
            }
            OptionRequest::ExtendedHeaders => {
                self.style = ReplyStyle::Extended;
                Ok(())
            }
            OptionRequest::ListMetaContext(request) => self.list_contexts(option, &request).await,
            OptionRequest::SetMetaContext(request) => self.select_contexts(option, request).await,
            OptionRequest::Unknown => Err(Refusal(
                OptionError::Unsupported,
                "there is no such option".to_owned(),
            )),
        };
        match answered {
            Ok(()) => self.reply(option, &OptionReply::Ack),
            Err(refusal) => self.refuse(option, &refusal),
        }
        Ok(Next::Continue)
    }

    /// Resolves the empty name, which stands for the only export.
    async fn resolve(&self, name: &Bytes) -> Result<Bytes, Refusal> {
        if !name.is_empty() {
            return Ok(name.clone());
        }
        match &self.exports.list().await?[..] {
            [(only, _)] => Ok(only.clone()),
            others => Err(Refusal(
                OptionError::Unknown,
                format!(
                    "there is no default export: there are {} exports, so name one",
                    others.len()
                ),
            )),
        }
    }

    async fn list(&mut self, option: u32) -> Result<Result<(), Refusal>, ConnectionError> {
        let exports = match self.exports.list().await {
            Ok(exports) => exports,
            Err(error) => return Ok(Err(error.into())),
        };
        for (name, description) in exports.iter().filter(|(name, _)| is_text(name)) {
            self.reply(option, &OptionReply::Export { name, description });
            if self.out.len() > SEND_LEN {
                self.send().await?;
            }
        }
        Ok(Ok(()))
    }

    async fn info(&mut self, option: u32, info: &InfoRequest) -> Result<(), Refusal> {
        let name = self.resolve(&info.name).await?;
        let description = self.exports.describe(&name).await?;
        let selected = self.selection.as_ref();
        let has_contexts = selected.is_some_and(|selected| selected.export == name);
        self.describe(option, &name, info, &description, has_contexts);
        Ok(())
    }

    fn describe(
        &mut self,
        option: u32,
        name: &Bytes,
        info: &InfoRequest,
        description: &Description,
        has_contexts: bool,
    ) {
        if info.wants_name || *name != info.name {
            self.reply(option, &OptionReply::InfoName(name));
        }
        if !description.text.is_empty() {
            self.reply(option, &OptionReply::InfoDescription(&description.text));
        }
        self.reply(option, &OptionReply::InfoBlockSize);
        let flags = self.flags(description.is_writable, has_contexts);
        let size = description.size;
        self.reply(option, &OptionReply::InfoExport { size, flags });
    }

    async fn go(
        &mut self,
        option: u32,
        info: &InfoRequest,
    ) -> Result<Negotiated<X::Export>, Refusal> {
        let name = self.resolve(&info.name).await?;
        let description = self.exports.describe(&name).await?;
        let negotiated = self.open(name).await?;
        let opened = opened(&negotiated.export, description.text);
        let has_contexts = !negotiated.contexts.is_empty();
        self.describe(option, &negotiated.name, info, &opened, has_contexts);
        self.reply(option, &OptionReply::Ack);
        Ok(negotiated)
    }

    async fn export_name(&mut self, name: Bytes) -> Result<Outcome<X::Export>, ConnectionError> {
        let negotiated = async {
            if self.style == ReplyStyle::Extended {
                let why = "EXPORT_NAME cannot follow EXTENDED_HEADERS".to_owned();
                return Err(Refusal(OptionError::Invalid, why));
            }
            let name = self.resolve(&name).await?;
            self.open(name).await
        };
        let negotiated = negotiated
            .await
            .map_err(|Refusal(_, why)| ConnectionError::Export(why))?;
        let device = opened(&negotiated.export, String::new());
        let flags = self.flags(device.is_writable, !negotiated.contexts.is_empty());
        let reply = handshake::export_name_reply(device.size, flags, self.client);
        self.out.extend_from_slice(&reply);
        Ok(Outcome::Transmit(negotiated))
    }

    /// Opens an export, and the contexts selected for it.
    async fn open(&mut self, name: Bytes) -> Result<Negotiated<X::Export>, Refusal> {
        let export = self.exports.open(&name).await?;
        let selection = self.selection.take();
        let names = match selection {
            Some(selection) if selection.export == name => selection.names,
            _ => Vec::new(),
        };
        let mut contexts = Vec::new();
        for context in names {
            contexts.push(match &context[..] {
                ALLOCATION => Selected::Allocation,
                own => match export.open_context(own).await? {
                    Some(opened) => Selected::Own(opened),
                    None => {
                        let text = own.escape_ascii();
                        let why = format!("the metadata context '{text}' no longer exists");
                        return Err(Refusal(OptionError::Invalid, why));
                    }
                },
            });
        }
        Ok(Negotiated {
            name,
            export,
            style: self.style,
            contexts,
        })
    }

    fn flags(&self, is_writable: bool, has_contexts: bool) -> TransmissionFlags {
        let mut flags = TransmissionFlags::HAS_FLAGS
            | TransmissionFlags::SEND_FLUSH
            | TransmissionFlags::CAN_MULTI_CONN
            | TransmissionFlags::SEND_CACHE;
        flags |= match is_writable {
            true => {
                TransmissionFlags::SEND_FUA
                    | TransmissionFlags::SEND_TRIM
                    | TransmissionFlags::SEND_WRITE_ZEROES
                    | TransmissionFlags::SEND_FAST_ZERO
            }
            false => TransmissionFlags::READ_ONLY,
        };
        if self.style != ReplyStyle::Simple {
            flags |= TransmissionFlags::SEND_DF;
        }
        if self.style == ReplyStyle::Extended && has_contexts {
            flags |= TransmissionFlags::BLOCK_STATUS_PAYLOAD;
        }
        flags
    }

    /// The contexts that match a query, each once.
    async fn contexts(
        &self,
        export: &Bytes,
        queries: &[ContextQuery<'_>],
    ) -> Result<Vec<Bytes>, Refusal> {
        let mut names = Vec::new();
        if queries.iter().any(|query| query.matches(ALLOCATION)) {
            names.push(Bytes::from_static(ALLOCATION));
        }
        let own = self.exports.contexts(export, queries).await?;
        for name in own.into_iter().filter(|name| is_text(name)) {
            if !names.contains(&name) {
                names.push(name);
            }
        }
        Ok(names)
    }

    async fn list_contexts(
        &mut self,
        option: u32,
        request: &ContextRequest,
    ) -> Result<(), Refusal> {
        self.require_structured()?;
        let export = self.resolve(&request.export).await?;
        self.exports.describe(&export).await?;
        let queries: Vec<_> = match request.queries.is_empty() {
            true => vec![ContextQuery::All],
            false => request.queries.iter().map(list_query).collect(),
        };
        let names = self.contexts(&export, &queries).await?;
        for name in &names {
            self.reply(option, &OptionReply::MetaContext { id: 0, name });
        }
        Ok(())
    }

    async fn select_contexts(
        &mut self,
        option: u32,
        request: ContextRequest,
    ) -> Result<(), Refusal> {
        // Also a failed request discards the last selection.
        self.selection = None;
        self.require_structured()?;
        let export = self.resolve(&request.export).await?;
        self.exports.describe(&export).await?;
        let queries = request.queries.iter();
        let queries: Vec<_> = queries.map(|query| ContextQuery::Exact(query)).collect();
        let names = self.contexts(&export, &queries).await?;
        if names.len() > MAX_CONTEXTS {
            let why = format!("more than {MAX_CONTEXTS} metadata contexts cannot be selected");
            return Err(Refusal(OptionError::TooBig, why));
        }
        for (id, name) in (0..).zip(&names) {
            self.reply(option, &OptionReply::MetaContext { id, name });
        }
        if !names.is_empty() {
            self.selection = Some(Selection { export, names });
        }
        Ok(())
    }

    fn require_structured(&self) -> Result<(), Refusal> {
        match self.style {
            ReplyStyle::Structured | ReplyStyle::Extended => Ok(()),
            ReplyStyle::Simple => Err(Refusal(
                OptionError::Invalid,
                "metadata contexts need structured replies".to_owned(),
            )),
        }
    }

    fn reply(&mut self, option: u32, reply: &OptionReply<'_>) {
        reply.encode(option, &mut self.out);
    }

    fn refuse(&mut self, option: u32, Refusal(code, why): &Refusal) {
        tracing::debug!("option {option} refused: {why}");
        self.reply(option, &OptionReply::Error(*code, why));
    }

    async fn send(&mut self) -> Result<(), ConnectionError> {
        let out = self.out.split();
        let sent = async {
            self.stream.write_all(&out).await?;
            // A TLS stream may have kept some of it.
            self.stream.flush().await
        };
        unless_late(self.deadline, sent).await
    }
}

/// Whether a name can be listed: strings on the wire are UTF-8. An export can be opened
/// by any name.
fn is_text(name: &[u8]) -> bool {
    std::str::from_utf8(name).is_ok()
}

/// A query of a list of contexts.
fn list_query(query: &Bytes) -> ContextQuery<'_> {
    match query.ends_with(b":") {
        true => ContextQuery::Prefix(query),
        false => ContextQuery::Exact(query),
    }
}

/// Describes an open export.
fn opened<E: Export>(export: &Arc<E>, text: String) -> Description {
    use sheepfs_vfs::BlockDevice as _;
    let device = export.device();
    Description {
        size: device.size(),
        is_writable: device.is_writable(),
        text,
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use sheepfs_vfs::volume::MemoryDevice;
    use tokio::io::{BufStream, duplex};
    use tokio::time::timeout;

    use super::*;
    use crate::export::DeviceExports;

    #[tokio::test(start_paused = true)]
    async fn option_reply_is_sent_through_buffered_stream() {
        let device = MemoryDevice::new(vec![0; 4096]);
        let exports = DeviceExports::new([(Bytes::from_static(b"disk"), device)]);
        let (mut client, server) = duplex(4096);
        // TLS keeps what the socket does not take at once.
        let mut stream = BufStream::new(server);
        let (shutdown, limit) = (CancellationToken::new(), Duration::from_secs(10));
        let mut handshake = Handshake::resume(
            &mut stream,
            &exports,
            &shutdown,
            Instant::now() + 2 * limit,
            Tls::Active,
            ClientFlags::FIXED_NEWSTYLE,
        );
        let asked = async {
            client.write_all(b"IHAVEOPT\0\0\0\x03\0\0\0\0").await?;
            client.read_u64().await
        };
        let magic = tokio::select! {
            magic = timeout(limit, asked) => magic,
            _ = handshake.run() => panic!("the handshake ended"),
        };
        assert_eq!(magic.unwrap().unwrap(), 0x0003_e889_0455_65a9);
    }
}
