//! TLS configuration from the same files as for qemu-nbd and nbdkit.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use rustls::pki_types::pem::{self, PemObject as _};
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use rustls::server::{VerifierBuilderError, WebPkiClientVerifier};
use rustls::{RootCertStore, ServerConfig};

const AUTHORITY: &str = "ca-cert.pem";
const CERTIFICATE: &str = "server-cert.pem";
const KEY: &str = "server-key.pem";

/// Why TLS cannot be configured.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum TlsError {
    /// The CPU lacks instructions that the cryptographic library requires.
    #[error("TLS needs a CPU with {0}: listen without it on a network that is not shared")]
    Cpu(&'static str),
    /// A file is missing or has another format.
    #[error("cannot use {}: make it with certtool(1) or openssl(1)", .path.display())]
    File {
        /// The file.
        path: PathBuf,
        /// The error of the parser.
        source: pem::Error,
    },
    /// The certificate of the authority is invalid.
    #[error("{} is not a valid certificate authority", .path.display())]
    Authority {
        /// The file.
        path: PathBuf,
        /// The error of the parser.
        source: rustls::Error,
    },
    /// The authority cannot verify clients.
    #[error("clients cannot be verified with {AUTHORITY}")]
    Verifier(#[from] VerifierBuilderError),
    /// Certificate and key do not match.
    #[error(
        "{CERTIFICATE} and {KEY} do not match: use the key that the certificate was issued for"
    )]
    Pair(#[from] rustls::Error),
}

/// Reads `ca-cert.pem`, `server-cert.pem` and `server-key.pem` of a directory.
///
/// A client certificate must be signed by the authority. It is required with
/// `verify_peer`, and optional without.
///
/// # Errors
/// `Cpu`, `File` when one is missing, and when the files do not match.
pub fn load(directory: &Path, verify_peer: bool) -> Result<Arc<ServerConfig>, TlsError> {
    check_cpu()?;
    let provider = Arc::new(rustls_graviola::default_provider());
    let mut authorities = RootCertStore::empty();
    let path = directory.join(AUTHORITY);
    for certificate in certificates(&path)? {
        let added = authorities.add(certificate);
        added.map_err(|source| TlsError::Authority {
            path: path.clone(),
            source,
        })?;
    }
    let chain = certificates(&directory.join(CERTIFICATE))?;
    let path = directory.join(KEY);
    let key =
        PrivateKeyDer::from_pem_file(&path).map_err(|source| TlsError::File { path, source })?;
    let verifier =
        WebPkiClientVerifier::builder_with_provider(authorities.into(), Arc::clone(&provider));
    let verifier = match verify_peer {
        true => verifier,
        false => verifier.allow_unauthenticated(),
    };
    let config = ServerConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()?
        .with_client_cert_verifier(verifier.build()?)
        .with_single_cert(chain, key)?;
    Ok(Arc::new(config))
}

fn certificates(path: &Path) -> Result<Vec<CertificateDer<'static>>, TlsError> {
    let file = |source| TlsError::File {
        path: path.to_owned(),
        source,
    };
    let found: Result<Vec<_>, _> = CertificateDer::pem_file_iter(path).map_err(file)?.collect();
    match found.map_err(file)? {
        none if none.is_empty() => Err(file(pem::Error::NoItemsFound)),
        found => Ok(found),
    }
}

/// The library asserts these features when it is used first.
#[cfg(target_arch = "x86_64")]
fn check_cpu() -> Result<(), TlsError> {
    use std::arch::is_x86_feature_detected as has;
    let features = [
        ("AES", has!("aes")),
        ("PCLMULQDQ", has!("pclmulqdq")),
        ("BMI1", has!("bmi1")),
        ("BMI2", has!("bmi2")),
        ("ADX", has!("adx")),
        ("AVX2", has!("avx2")),
        ("SSSE3", has!("ssse3")),
    ];
    match features.iter().find(|(_, is_present)| !is_present) {
        Some((name, _)) => Err(TlsError::Cpu(name)),
        None => Ok(()),
    }
}

/// Every 64-bit ARM server since 2015 has them.
#[cfg(not(target_arch = "x86_64"))]
fn check_cpu() -> Result<(), TlsError> {
    Ok(())
}
