//! Getting the node's own certificate from the cluster, and a new one in time (`perNodeCertificate`).
//!
//! The first is asked for with the node's credentials (`bootstrapKubeconfig`, mostly kubelet's), the next ones with the
//! certificate before. Somebody in the cluster has to approve ([`approver`](crate::approver)), and the cluster's signer to
//! issue it. A kubeconfig that names the certificate is written whenever there is a new one; whoever uses it sees by
//! that that it has to be read again.

use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime};

use cni::Object;
use k8s_openapi::ByteString;
use k8s_openapi::api::certificates::v1::{CertificateSigningRequest, CertificateSigningRequestSpec};
use kube::api::{Api, ObjectMeta, PostParams};
use kube::config::{KubeConfigOptions, Kubeconfig};
use kube::{Client, Config, ResourceExt as _};
use serde_json::json;

use crate::Error;
use crate::certificate::{Request, Store};
use crate::conf::{duration, parse_duration};

/// The signer of certificates that the API server knows clients by.
pub const SIGNER: &str = "kubernetes.io/kube-apiserver-client";

/// What the certificates are for.
pub const USAGES: [&str; 2] = ["digital signature", "client auth"];

/// Where certificates are when nothing else is said.
const DEFAULT_DIRECTORY: &str = "/etc/cni/multus/certs";

/// The least that signers issue.
const DEFAULT_LIFE: Duration = Duration::from_secs(600);

/// How long is waited for an approval and the certificate. What is asked for stays in the cluster for a day: where nobody
/// approves, every node that asks anew leaves one more.
const APPROVAL_LIMIT: Duration = Duration::from_secs(15 * 60);

/// How often is looked for it.
const LOOKS: Backoff = Backoff { first: Duration::from_secs(1), longest: Duration::from_secs(15) };

/// How long after a failure is asked again, where what was asked for is in the cluster already.
const RETRIES: Backoff = Backoff { first: Duration::from_secs(5), longest: Duration::from_secs(10 * 60) };

/// The longest sleep: a clock that is set right after the start of the node must not be slept through.
const LONGEST_SLEEP: Duration = Duration::from_secs(60);

/// Pauses that grow: what fails fails on all nodes of a cluster.
#[derive(Debug, Clone, Copy)]
struct Backoff {
    first: Duration,
    longest: Duration,
}

impl Backoff {
    /// What fits a failure: a server that is away must not find its nodes asleep when it is back.
    fn for_failure(error: &Error) -> Self {
        if matches!(error, Error::Certificate { .. }) { RETRIES } else { LOOKS }
    }

    /// How long to wait after so many attempts.
    fn after(self, attempts: u32) -> Duration {
        let doubled = 2_u32.saturating_pow(attempts.saturating_sub(1));
        self.first.saturating_mul(doubled).min(self.longest)
    }

    /// Waits after one more attempt.
    async fn wait(self, attempts: &mut u32) {
        *attempts = attempts.saturating_add(1);
        tokio::time::sleep(self.after(*attempts)).await;
    }
}

/// The certificate of a node, and how to come by it.
#[derive(Debug, Clone)]
pub struct Enrolment {
    /// The node's name.
    pub node: String,
    /// The node's credentials.
    pub bootstrap: PathBuf,
    /// The certificates.
    pub store: Store,
    /// How long a certificate is to be good for.
    pub life: Duration,
    /// The kubeconfig that is written.
    pub kubeconfig: PathBuf,
}

impl Enrolment {
    /// As the daemon's configuration says; `None` where it says nothing of certificates, or that there are none.
    ///
    /// # Errors
    /// Code 6 or 7, naming the key.
    pub fn of_daemon(raw: &Object, node: Option<&str>) -> Result<Option<Self>, cni::Error> {
        let Some(raw) = raw.decode::<Object>("perNodeCertificate")? else { return Ok(None) };
        if !raw.decode::<bool>("enabled")?.unwrap_or_default() {
            return Ok(None);
        }
        let text = |key| raw.decode::<String>(key).map(|text| text.filter(|text| !text.is_empty()));
        let missing = |what| cni::Error::invalid_config(format!("\"perNodeCertificate\" needs {what}"));
        let directory = text("certDir")?.map_or_else(|| PathBuf::from(DEFAULT_DIRECTORY), PathBuf::from);
        Ok(Some(Enrolment {
            node: node.ok_or_else(|| missing("the variable MULTUS_NODE_NAME"))?.to_owned(),
            bootstrap: text("bootstrapKubeconfig")?.ok_or_else(|| missing("\"bootstrapKubeconfig\""))?.into(),
            life: duration(&raw, "certDuration")?.unwrap_or(DEFAULT_LIFE),
            kubeconfig: directory.join("multus.kubeconfig"),
            store: Store::new(directory),
        }))
    }

    /// As the flags of the peer's `kubeconfig_generator` say.
    ///
    /// # Errors
    /// Which of them is wrong.
    pub fn of_flags(values: &crate::flags::Values, node: Option<String>) -> Result<Self, Error> {
        let life = values.text("cert-duration");
        Ok(Enrolment {
            node: node.ok_or_else(|| Error::Usage("MULTUS_NODE_NAME must be set".to_owned()))?,
            bootstrap: values.path("bootstrap-config"),
            store: Store::new(values.path("certdir")),
            life: parse_duration(life)
                .ok_or_else(|| Error::Usage(format!("cert-duration {life:?} is no length of time")))?,
            kubeconfig: values.path("kubeconfig"),
        })
    }

    /// Sees to it that there is a certificate that is good, however long that takes.
    pub async fn ensure(&self) {
        let mut attempts = 0;
        loop {
            let now = SystemTime::now();
            let done = match self.store.validity().filter(|validity| validity.is_good(now)) {
                Some(_) => self.write_kubeconfig(),
                None => self.renew(&self.bootstrap).await,
            };
            match done {
                Ok(()) => return,
                Err(error) => {
                    tracing::error!("{error}; trying again");
                    Backoff::for_failure(&error).wait(&mut attempts).await;
                }
            }
        }
    }

    /// Renews the certificate whenever it is time, for ever.
    pub async fn keep(self) {
        self.ensure().await;
        let mut refused = false;
        let mut attempts = 0;
        loop {
            let now = SystemTime::now();
            let validity = self.store.validity().filter(|validity| validity.is_good(now));
            let due = validity.map_or(now, |validity| validity.renewal(&self.node));
            if let Ok(left) = due.duration_since(now)
                && !left.is_zero()
            {
                tokio::time::sleep(left.min(LONGEST_SLEEP)).await;
                continue;
            }
            // The certificate's authority may have been replaced: then the node's credentials are newer.
            let credentials = if validity.is_none() || refused { &self.bootstrap } else { &self.kubeconfig };
            match self.renew(credentials).await {
                Ok(()) => (refused, attempts) = (false, 0),
                Err(error) => {
                    tracing::error!("{error}; trying again");
                    refused = !refused;
                    Backoff::for_failure(&error).wait(&mut attempts).await;
                }
            }
        }
    }

    async fn renew(&self, credentials: &Path) -> Result<(), Error> {
        let Request { key, request } = Request::of_node(&self.node)?;
        let by = |message| format!("{message} (by {})", credentials.display());
        let asked = self.ask(credentials, request).await;
        let (api, name) = asked.map_err(|message| Error::NotAsked { message: by(message) })?;
        let issued = issued(&api, &name).await;
        let issued = issued.map_err(|message| Error::Certificate { message: by(message) })?;
        self.store.put(&issued, &key)?;
        self.write_kubeconfig()?;
        tracing::info!("there is a new certificate, {}", self.store.current().display());
        Ok(())
    }

    /// Asks; the name under which the request is in the cluster.
    async fn ask(
        &self,
        credentials: &Path,
        request: String,
    ) -> Result<(Api<CertificateSigningRequest>, String), String> {
        let kubeconfig = Kubeconfig::read_from(credentials).map_err(|e| e.to_string())?;
        let config = Config::from_custom_kubeconfig(kubeconfig, &KubeConfigOptions::default()).await;
        let client = Client::try_from(config.map_err(|e| e.to_string())?).map_err(|e| e.to_string())?;
        let api: Api<CertificateSigningRequest> = Api::all(client);
        let object = CertificateSigningRequest {
            metadata: ObjectMeta { generate_name: Some("multus-".to_owned()), ..ObjectMeta::default() },
            spec: CertificateSigningRequestSpec {
                request: ByteString(request.into_bytes()),
                signer_name: SIGNER.to_owned(),
                usages: Some(USAGES.map(str::to_owned).into()),
                expiration_seconds: i32::try_from(self.life.as_secs()).ok(),
                ..CertificateSigningRequestSpec::default()
            },
            status: None,
        };
        let created = api.create(&PostParams::default(), &object).await.map_err(|e| e.to_string())?;
        let name = created.name_any();
        Ok((api, name))
    }

    /// The cluster is that of the node's credentials, the user the one of the certificate.
    fn write_kubeconfig(&self) -> Result<(), Error> {
        let failed = |message: String| Error::file("reading", &self.bootstrap, message);
        let node = Kubeconfig::read_from(&self.bootstrap).map_err(|e| failed(e.to_string()))?;
        let context = node.current_context.as_deref().unwrap_or_default();
        let context = node.contexts.iter().find(|named| named.name == context);
        let cluster = context.and_then(|named| named.context.as_ref()).map(|context| &context.cluster);
        let cluster = node.clusters.iter().find(|named| Some(&named.name) == cluster);
        let cluster = cluster.and_then(|named| named.cluster.as_ref());
        let cluster = cluster.ok_or_else(|| failed("its current context names no cluster".to_owned()))?;
        let current = self.store.current();
        // JSON is YAML.
        let kubeconfig = json!({
            "apiVersion": "v1",
            "kind": "Config",
            "clusters": [{"name": "local", "cluster": cluster}],
            "users": [{"name": "multus", "user": {"client-certificate": current, "client-key": current}}],
            "contexts": [{"name": "multus-context", "context": {"cluster": "local", "user": "multus"}}],
            "current-context": "multus-context",
        });
        if let Some(directory) = self.kubeconfig.parent() {
            host::durable::make_directory(directory)?;
        }
        host::durable::write(&self.kubeconfig, format!("{kubeconfig:#}\n").as_bytes())?;
        Ok(())
    }
}

/// Keeps certificate and kubeconfig until told to end; then the kubeconfig goes (the peer's `kubeconfig_generator`).
///
/// # Errors
/// When signals cannot be listened to, or the kubeconfig not be removed.
pub async fn run(enrolment: Enrolment) -> Result<(), Error> {
    let stop = crate::daemon::told_to_end()?;
    let kubeconfig = enrolment.kubeconfig.clone();
    tokio::select! {
        () = enrolment.keep() => {}
        () = stop.cancelled() => {}
    }
    host::durable::remove(&kubeconfig)?;
    Ok(())
}

/// What comes of a request.
async fn issued(api: &Api<CertificateSigningRequest>, name: &str) -> Result<String, String> {
    let waited = tokio::time::timeout(APPROVAL_LIMIT, async {
        let mut looks = 0;
        loop {
            LOOKS.wait(&mut looks).await;
            let object = match api.get(name).await {
                Ok(object) => object,
                // It was collected, or it is another one's to see.
                Err(kube::Error::Api(status)) if matches!(status.code, 401..=404) => {
                    return Err(status.to_string());
                }
                // The server is away; what was asked for is still there when it is back.
                Err(error) => {
                    tracing::debug!("certificatesigningrequest {name}: {error}; looking again");
                    continue;
                }
            };
            let status = object.status.unwrap_or_default();
            if let Some(ByteString(certificate)) = status.certificate {
                return String::from_utf8(certificate).map_err(|e| e.to_string());
            }
            let mut conditions = status.conditions.into_iter().flatten();
            if let Some(no) = conditions.find(|c| matches!(c.type_.as_str(), "Denied" | "Failed")) {
                let why = no.message.unwrap_or_default();
                return Err(format!("certificatesigningrequest {name} is {}: {why}", no.type_));
            }
        }
    });
    waited.await.unwrap_or_else(|_| {
        Err(format!(
            "certificatesigningrequest {name} has no certificate after {} s; is cert-approver running?",
            APPROVAL_LIMIT.as_secs()
        ))
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pauses_grow_up_to_a_limit() {
        let seconds = |attempts| RETRIES.after(attempts).as_secs();
        assert_eq!([1, 2, 3, 8, 100].map(seconds), [5, 10, 20, 600, 600]);
        assert!((0..40).all(|attempts| LOOKS.after(attempts) <= LOOKS.after(attempts + 1)));
    }

    #[test]
    fn keys_of_the_daemon_s_configuration() {
        let of = |json: &str, node: Option<&str>| {
            let raw = Object::parse(format!("{{\"perNodeCertificate\":{json}}}").as_bytes()).unwrap();
            Enrolment::of_daemon(&raw, node)
        };
        for off in ["null", "{}", r#"{"enabled":false,"certDuration":"x"}"#] {
            assert!(of(off, None).unwrap().is_none(), "{off}");
        }
        let on = r#"{"Enabled":true,"bootstrapKubeconfig":"/k","certDir":"/c","certDuration":"24h"}"#;
        let enrolment = of(on, Some("n")).unwrap().unwrap();
        assert_eq!(enrolment.kubeconfig, Path::new("/c/multus.kubeconfig"));
        assert_eq!(enrolment.life, Duration::from_secs(86_400));
        for (json, node, part) in [
            (on, None, "MULTUS_NODE_NAME"),
            (r#"{"enabled":true}"#, Some("n"), "bootstrapKubeconfig"),
            (
                r#"{"enabled":true,"bootstrapKubeconfig":"/k","certDuration":"soon"}"#,
                Some("n"),
                "certDuration",
            ),
        ] {
            let error = of(json, node).unwrap_err().to_string();
            assert!(error.contains(part), "{json}: {error}");
        }
    }
}
