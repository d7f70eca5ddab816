//! Certificates of the server and of one client, made when the server starts.

use std::io;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use rcgen::{
    BasicConstraints, CertificateParams, CertificateSigningRequestParams, CertifiedIssuer, DistinguishedName,
    DnType, ExtendedKeyUsagePurpose, IsCa, KeyPair, KeyUsagePurpose,
};
use tokio_rustls::rustls::crypto::ring;
use tokio_rustls::rustls::pki_types::{CertificateDer, PrivateKeyDer, PrivatePkcs8KeyDer};
use tokio_rustls::rustls::server::WebPkiClientVerifier;
use tokio_rustls::rustls::{RootCertStore, ServerConfig};
use x509_parser::certificate::X509Certificate;
use x509_parser::prelude::FromDer as _;

/// What clients need to trust the server and to be trusted by it.
#[derive(Debug, Clone)]
pub(super) struct Identity {
    /// Certificate authority, PEM.
    pub(super) ca_pem: String,
    /// Client certificate, PEM.
    pub(super) client_pem: String,
    /// Key of the client certificate, PKCS #8 PEM.
    pub(super) client_key_pem: String,
    authority: Arc<CertifiedIssuer<'static, KeyPair>>,
}

impl Identity {
    /// Signs a certificate of a client, PEM, by its request (PKCS #10, PEM).
    pub(super) fn sign(&self, request: &str, life: Duration) -> io::Result<String> {
        let mut request = CertificateSigningRequestParams::from_pem(request).map_err(io::Error::other)?;
        let now = SystemTime::now();
        // Clocks of clients may differ a little.
        request.params.not_before = now.checked_sub(Duration::from_secs(1)).unwrap_or(now).into();
        request.params.not_after = (now + life).into();
        request.params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
        request.params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ClientAuth];
        Ok(request.signed_by(&self.authority).map_err(io::Error::other)?.pem())
    }
}

/// The user that a certificate stands for.
pub(super) fn user_of(certificate: &[u8]) -> Option<String> {
    let (_, certificate) = X509Certificate::from_der(certificate).ok()?;
    let name = certificate.subject().iter_common_name().next()?;
    name.as_str().ok().map(str::to_owned)
}

/// Makes an authority, a server certificate for loopback and the names under which a lab guest or a pod reaches the
/// server, and a client certificate.
pub(super) fn make(user: &str) -> io::Result<(Identity, Arc<ServerConfig>)> {
    let mut params = CertificateParams::default();
    params.distinguished_name = named("podrail-sim-ca");
    params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
    let ca = CertifiedIssuer::self_signed(params, KeyPair::generate().map_err(io::Error::other)?)
        .map_err(io::Error::other)?;

    let names =
        ["127.0.0.1", "::1", "10.0.2.2", "10.96.0.1", "localhost", "kubernetes", "kubernetes.default.svc"];
    let names: Vec<String> = names.map(str::to_owned).into();
    let mut params = CertificateParams::new(names).map_err(io::Error::other)?;
    params.distinguished_name = named("podrail-sim-apiserver");
    params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
    params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ServerAuth];
    let (server, server_key) = issue(&params, &ca)?;

    let mut params = CertificateParams::default();
    params.distinguished_name = named(user);
    params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
    params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ClientAuth];
    let (client, client_key) = issue(&params, &ca)?;

    let provider = Arc::new(ring::default_provider());
    let mut roots = RootCertStore::empty();
    roots.add(ca.der().clone()).map_err(io::Error::other)?;
    let verifier = WebPkiClientVerifier::builder_with_provider(Arc::new(roots), Arc::clone(&provider))
        .allow_unauthenticated()
        .build()
        .map_err(io::Error::other)?;
    let key = PrivateKeyDer::Pkcs8(PrivatePkcs8KeyDer::from(server_key.serialize_der()));
    let mut config = ServerConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .map_err(io::Error::other)?
        .with_client_cert_verifier(verifier)
        .with_single_cert(vec![CertificateDer::clone(server.der()), ca.der().clone()], key)
        .map_err(io::Error::other)?;
    config.alpn_protocols = vec![b"h2".to_vec(), b"http/1.1".to_vec()];

    let identity = Identity {
        ca_pem: ca.pem(),
        client_pem: client.pem(),
        client_key_pem: client_key.serialize_pem(),
        authority: Arc::new(ca),
    };
    Ok((identity, Arc::new(config)))
}

fn issue(
    params: &CertificateParams,
    ca: &CertifiedIssuer<'_, KeyPair>,
) -> io::Result<(rcgen::Certificate, KeyPair)> {
    let key = KeyPair::generate().map_err(io::Error::other)?;
    let certificate = params.signed_by(&key, ca).map_err(io::Error::other)?;
    Ok((certificate, key))
}

fn named(common_name: &str) -> DistinguishedName {
    let mut name = DistinguishedName::new();
    name.push(DnType::CommonName, common_name);
    name
}
