//! TLS to Postgres with the meaning that libpq gives to `sslmode`: up to `require` it only encrypts.

use super::SetupError;
use rustls::{
    CertificateError, ClientConfig, DigitallySignedStruct, RootCertStore, SignatureScheme,
    client::{
        WebPkiServerVerifier,
        danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier},
    },
    crypto::{CryptoProvider, ring, verify_tls12_signature, verify_tls13_signature},
    pki_types::{CertificateDer, ServerName, UnixTime, pem::PemObject},
};
use sqlx::postgres::PgSslMode;
use std::sync::Arc;
use tokio_postgres_rustls::MakeRustlsConnect;

/// `roots` is a PEM file, or its text; without it the system's are used.
pub(super) fn connector(mode: PgSslMode, roots: Option<&str>) -> Result<MakeRustlsConnect, SetupError> {
    let provider = Arc::new(ring::default_provider());
    let verifier = match mode {
        PgSslMode::VerifyFull => Verifier::of(Checks::NameToo(chain(roots, &provider)?), &provider),
        PgSslMode::VerifyCa => Verifier::of(Checks::Chain(chain(roots, &provider)?), &provider),
        _ => Verifier::of(Checks::Nothing, &provider),
    };
    let config = ClientConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .map_err(|error| SetupError::Pool(error.to_string()))?
        .dangerous()
        .with_custom_certificate_verifier(Arc::new(verifier))
        .with_no_client_auth();
    Ok(MakeRustlsConnect::new(config))
}

fn chain(
    roots: Option<&str>,
    provider: &Arc<CryptoProvider>,
) -> Result<Arc<WebPkiServerVerifier>, SetupError> {
    let wrong = |error: &dyn std::fmt::Display| SetupError::Roots(error.to_string());
    let certificates: Vec<CertificateDer<'static>> = match roots {
        Some(pem) if pem.contains("-----BEGIN") => CertificateDer::pem_slice_iter(pem.as_bytes()).collect(),
        Some(file) => CertificateDer::pem_file_iter(file).map_err(|error| wrong(&error))?.collect(),
        None => Ok(rustls_native_certs::load_native_certs().certs),
    }
    .map_err(|error| wrong(&error))?;
    let mut store = RootCertStore::empty();
    store.add_parsable_certificates(certificates);
    let verifier = WebPkiServerVerifier::builder_with_provider(store.into(), Arc::clone(provider)).build();
    verifier.map_err(|error| wrong(&error))
}

#[derive(Debug)]
enum Checks {
    /// `prefer` and `require`: whoever answers.
    Nothing,
    /// `verify-ca`: whoever has a certificate of a known authority.
    Chain(Arc<WebPkiServerVerifier>),
    /// `verify-full`.
    NameToo(Arc<WebPkiServerVerifier>),
}

#[derive(Debug)]
struct Verifier {
    checks: Checks,
    provider: Arc<CryptoProvider>,
}

impl Verifier {
    fn of(checks: Checks, provider: &Arc<CryptoProvider>) -> Self {
        Self { checks, provider: Arc::clone(provider) }
    }
}

impl ServerCertVerifier for Verifier {
    fn verify_server_cert(
        &self,
        end: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        name: &ServerName<'_>,
        ocsp: &[u8],
        now: UnixTime,
    ) -> Result<ServerCertVerified, rustls::Error> {
        match &self.checks {
            Checks::Nothing => Ok(ServerCertVerified::assertion()),
            Checks::NameToo(chain) => chain.verify_server_cert(end, intermediates, name, ocsp, now),
            // The name is looked at last.
            Checks::Chain(chain) => match chain.verify_server_cert(end, intermediates, name, ocsp, now) {
                Err(rustls::Error::InvalidCertificate(
                    CertificateError::NotValidForName | CertificateError::NotValidForNameContext { .. },
                )) => Ok(ServerCertVerified::assertion()),
                verdict => verdict,
            },
        }
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        let algorithms = &self.provider.signature_verification_algorithms;
        verify_tls12_signature(message, certificate, signature, algorithms)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        let algorithms = &self.provider.signature_verification_algorithms;
        verify_tls13_signature(message, certificate, signature, algorithms)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.provider.signature_verification_algorithms.supported_schemes()
    }
}
