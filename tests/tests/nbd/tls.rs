//! TLS with certificates, used by libnbd and QEMU.

use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use anyhow::ensure;
use tempfile::TempDir;
use tests::{NbdServer, free_ports, make_image, output, run, sheep_nbd_binary};

use crate::{Fixture, program};

/// Validity of the certificates, and longest run of a client.
const DAYS: &str = "2";
const LIMIT: Duration = Duration::from_secs(60);

/// A certificate authority, with a directory of files for each role.
struct Authority {
    directory: TempDir,
}

impl Authority {
    fn new() -> anyhow::Result<Self> {
        let authority = Self {
            directory: TempDir::with_prefix("sheepfs-test-tls-")?,
        };
        let (certificate, key) = authority.files();
        run(
            openssl(&certificate, &key, "sheep-nbd test authority").args([
                "-addext",
                "basicConstraints=critical,CA:TRUE",
                "-addext",
                "keyUsage=critical,keyCertSign",
            ]),
        )?;
        Ok(authority)
    }

    fn files(&self) -> (PathBuf, PathBuf) {
        let file = |name| self.directory.path().join(name);
        (file("ca-cert.pem"), file("ca-key.pem"))
    }

    /// A directory with `ROLE-cert.pem`, `ROLE-key.pem` and the authority's certificate.
    fn issue(&self, role: &str) -> anyhow::Result<PathBuf> {
        let directory = self.trust(role)?;
        let file = |what| directory.join(format!("{role}-{what}.pem"));
        let (certificate, key) = self.files();
        run(openssl(&file("cert"), &file("key"), "localhost")
            .arg("-CA")
            .arg(certificate)
            .arg("-CAkey")
            .arg(key)
            .args([
                "-addext",
                "subjectAltName=DNS:localhost,IP:127.0.0.1",
                "-addext",
                "basicConstraints=critical,CA:FALSE",
                "-addext",
                &format!("extendedKeyUsage={role}Auth"),
            ]))?;
        Ok(directory)
    }

    /// A directory with only the authority's certificate.
    fn trust(&self, name: &str) -> anyhow::Result<PathBuf> {
        let directory = self.directory.path().join(name);
        std::fs::create_dir(&directory)?;
        std::fs::copy(self.files().0, directory.join("ca-cert.pem"))?;
        Ok(directory)
    }
}

fn openssl(certificate: &Path, key: &Path, subject: &str) -> Command {
    let mut command = Command::new("openssl");
    command
        .args(["req", "-x509", "-nodes", "-newkey", "ec"])
        .args(["-pkeyopt", "ec_paramgen_curve:prime256v1"])
        .args(["-days", DAYS])
        .args(["-subj", &format!("/CN={subject}")])
        .arg("-out")
        .arg(certificate)
        .arg("-keyout")
        .arg(key);
    command
}

/// A server on a port of the loopback interface.
struct TlsServer {
    server: NbdServer,
    port: u16,
    name: String,
}

impl TlsServer {
    fn start(fixture: &Fixture, certificates: &Path, options: &[&str]) -> anyhow::Result<Self> {
        let name = fixture.create("tls", "32M object_size=1M")?;
        let port = free_ports(1)?[0];
        let listen = format!("--listen=:{port}");
        let certificates = format!("--tls-certificates={}", certificates.display());
        let mut arguments = vec![&*name, &listen, &certificates];
        arguments.extend(options);
        Ok(Self {
            server: NbdServer::start(&fixture.cluster, &arguments)?,
            port,
            name,
        })
    }

    fn uri(&self, certificates: &Path) -> String {
        format!(
            "nbds://localhost:{}/{}?tls-certificates={}",
            self.port,
            self.name,
            certificates.display()
        )
    }

    /// What nbdinfo prints to standard error if it fails.
    fn refusal(&self, uri: &str) -> anyhow::Result<String> {
        let finished = output(LIMIT, Command::new("nbdinfo").args(["--size", uri]))?;
        ensure!(!finished.status.success(), "{uri} was accepted");
        Ok(finished.stderr)
    }
}

#[test]
fn tls_clients_copy_and_compare() -> anyhow::Result<()> {
    let fixture = Fixture::start()?;
    let authority = Authority::new()?;
    let server = TlsServer::start(&fixture, &authority.issue("server")?, &[])?;
    let client = authority.trust("client")?;
    let uri = server.uri(&client);
    let (image, back) = (server.server.path("image"), server.server.path("back"));
    make_image(&image)?;
    run(Command::new("nbdcopy").arg(&image).arg(&uri))?;
    run(Command::new("nbdcopy").arg(&uri).arg(&back))?;
    run(Command::new("cmp").arg(&image).arg(&back))?;
    let credentials = format!(
        "tls-creds-x509,id=tls,endpoint=client,dir={}",
        client.display()
    );
    let export = format!(
        "driver=nbd,server.type=inet,server.host=localhost,server.port={},export={},tls-creds=tls",
        server.port, server.name
    );
    let file = format!("driver=file,filename={}", image.display());
    let compare = ["compare", "--object", &credentials, "--image-opts"];
    run(Command::new("qemu-img")
        .args(compare)
        .args([&export, &file]))?;
    server.server.stop()
}

/// Ends the handshake, and a connection in the transmission phase, over TLS.
const END: &str = r"
import socket, ssl, struct, sys
port, authority, name = int(sys.argv[1]), sys.argv[2], sys.argv[3].encode()
def option(stream, number, data=b''):
    stream.sendall(struct.pack('>8sII', b'IHAVEOPT', number, len(data)) + data)
def receive(stream, count):
    while count > 0:
        data = stream.recv(count)
        assert data, 'it ended early'
        count -= len(data)
def start():
    plain = socket.create_connection(('localhost', port))
    receive(plain, 18)
    plain.sendall(struct.pack('>I', 3))
    option(plain, 5)
    receive(plain, 20)
    context = ssl.create_default_context(cafile=authority)
    # The end of the connection without that of TLS is an error.
    context.options &= ~ssl.OP_IGNORE_UNEXPECTED_EOF
    return context.wrap_socket(plain, server_hostname='localhost', suppress_ragged_eofs=False)
stream = start()
option(stream, 2)
receive(stream, 20)
assert stream.recv(1) == b''
stream = start()
option(stream, 1, name)
receive(stream, 10)
stream.sendall(struct.pack('>IHHQQI', 0x25609513, 0, 2, 0, 0, 0))
assert stream.recv(1) == b''
";

#[test]
fn tls_is_closed_before_connection() -> anyhow::Result<()> {
    let fixture = Fixture::start()?;
    let authority = Authority::new()?;
    let server = TlsServer::start(&fixture, &authority.issue("server")?, &[])?;
    let port = server.port.to_string();
    let trusted = authority.trust("client")?.join("ca-cert.pem");
    run(Command::new("/usr/bin/python3")
        .args(["-c", END, &port])
        .arg(&trusted)
        .arg(&server.name))?;
    server.server.stop()
}

#[test]
fn tls_is_required_of_every_client() -> anyhow::Result<()> {
    let fixture = Fixture::start()?;
    let authority = Authority::new()?;
    let server = TlsServer::start(&fixture, &authority.issue("server")?, &[])?;
    let plain = format!("nbd://localhost:{}/{}", server.port, server.name);
    let said = server.refusal(&plain)?;
    ensure!(said.contains("server requires TLS"), "{said}");
    // The Unix socket is no way around it.
    let said = server.refusal(&server.server.uri(&server.name))?;
    ensure!(said.contains("server requires TLS"), "{said}");
    // A client that trusts another authority leaves.
    let other = Authority::new()?;
    server.refusal(&server.uri(&other.trust("client")?))?;
    let uri = server.uri(&authority.trust("client")?);
    ensure!(program("nbdinfo", &["--size", &uri])? == "33554432\n");
    server.server.stop()
}

#[test]
fn tls_verify_peer_needs_signed_client_certificate() -> anyhow::Result<()> {
    let fixture = Fixture::start()?;
    let authority = Authority::new()?;
    let certificates = authority.issue("server")?;
    let server = TlsServer::start(&fixture, &certificates, &["--tls-verify-peer"])?;
    server.refusal(&server.uri(&authority.trust("anonymous")?))?;
    // A certificate of another authority, from a client that trusts this one.
    let other = Authority::new()?;
    let stranger = other.issue("client")?;
    std::fs::copy(authority.files().0, stranger.join("ca-cert.pem"))?;
    server.refusal(&server.uri(&stranger))?;
    let uri = server.uri(&authority.issue("client")?);
    ensure!(program("nbdinfo", &["--size", &uri])? == "33554432\n");
    let log = server.server.log();
    ensure!(log.contains("the TLS handshake failed"), "{log}");
    server.server.stop()
}

#[test]
fn tls_file_errors_are_one_line() -> anyhow::Result<()> {
    let authority = Authority::new()?;
    let certificates = authority.issue("server")?;
    let socket = certificates.join("socket");
    let refusal = || -> anyhow::Result<String> {
        let finished = output(
            LIMIT,
            Command::new(sheep_nbd_binary()?)
                .args(["-f", "--embedded", "--socket"])
                .arg(&socket)
                .arg("--tls-certificates")
                .arg(&certificates),
        )?;
        ensure!(finished.status.code() == Some(1), "{finished:?}");
        let line = finished.stderr.lines().last().unwrap_or_default();
        Ok(line.to_owned())
    };
    let key = certificates.join("server-key.pem");
    std::fs::remove_file(&key)?;
    let said = refusal()?;
    let expected = format!("sheep-nbd: cannot use {}", key.display());
    ensure!(said.starts_with(&expected), "{said}");
    // The key of another certificate.
    std::fs::copy(authority.files().1, &key)?;
    let said = refusal()?;
    ensure!(
        said.starts_with("sheep-nbd: server-cert.pem and server-key.pem do not match"),
        "{said}"
    );
    Ok(())
}
