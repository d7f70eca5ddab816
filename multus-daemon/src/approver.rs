//! Approves the certificates that nodes ask for (the peer's `cert-approver`): one process in the cluster.
//!
//! A node may have a certificate for itself, and nothing else: a node that was broken into must not become another.

use std::pin::pin;
use std::time::Duration;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD as BASE64;
use futures_util::StreamExt as _;
use k8s_openapi::api::certificates::v1::{
    CertificateSigningRequest, CertificateSigningRequestCondition, CertificateSigningRequestStatus,
};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;
use k8s_openapi::jiff::Timestamp;
use kube::api::{Api, PostParams};
use kube::runtime::WatchStreamExt as _;
use kube::runtime::events::{Event, EventType, Recorder, Reporter};
use kube::runtime::watcher::{self, watcher};
use kube::{Client, Resource as _, ResourceExt as _};
use x509_parser::certification_request::X509CertificationRequest;
use x509_parser::prelude::FromDer as _;
use x509_parser::x509::{AttributeTypeAndValue, X509Name};

use crate::Error;
use crate::certificate::{COMMON_NAME, ORGANIZATION};
use crate::enrolment::{SIGNER, USAGES};

/// Who asks for the first certificate.
const NODE: &str = "system:node:";

/// Groups that who asks may be in.
const GROUPS: [&str; 3] = ["system:nodes", ORGANIZATION, "system:authenticated"];

/// What a request is in PEM form.
const LABEL: &str = "CERTIFICATE REQUEST";

/// The longest life of a certificate.
const LONGEST: Duration = Duration::from_secs(365 * 24 * 3600);

/// How often an answer is tried to be given.
const ATTEMPTS: u32 = 5;
const PAUSE: Duration = Duration::from_secs(1);

/// What is to be said to a request.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Verdict {
    /// It is another's, or has been answered.
    NotOurs,
    /// It is as it should be.
    Approve,
    /// It is not, for this reason.
    Deny(String),
}

/// What is to be said to `request`.
#[must_use]
pub fn verdict(request: &CertificateSigningRequest) -> Verdict {
    let status = request.status.as_ref();
    let is_answered = status.and_then(|status| status.conditions.as_ref()).is_some_and(|c| !c.is_empty());
    let Some(subject) = Subject::of(&request.spec.request.0) else { return Verdict::NotOurs };
    if is_answered || request.spec.signer_name != SIGNER || !subject.common_name.starts_with(ORGANIZATION) {
        return Verdict::NotOurs;
    }
    match objection(request, &subject) {
        None => Verdict::Approve,
        Some(objection) => Verdict::Deny(objection),
    }
}

fn objection(request: &CertificateSigningRequest, subject: &Subject) -> Option<String> {
    let spec = &request.spec;
    let user = spec.username.as_deref().unwrap_or_default();
    let Some(node) = user.strip_prefix(NODE).or_else(|| user.strip_prefix(COMMON_NAME)) else {
        return Some(format!("user {user:?} is no node"));
    };
    let is_name = !node.is_empty()
        && node.len() <= 253
        && node.split('.').all(|label| {
            let is_inner = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit() || c == '-';
            !label.is_empty()
                && label.chars().all(is_inner)
                && !label.starts_with('-')
                && !label.ends_with('-')
        });
    if !is_name {
        return Some(format!("{node:?} is no name of a node"));
    }
    let mut usages = spec.usages.clone().unwrap_or_default();
    usages.sort();
    let mut wanted = USAGES.map(str::to_owned).to_vec();
    wanted.sort();
    if usages != wanted {
        return Some(format!("usages must be {wanted:?}, and are {usages:?}"));
    }
    let groups = spec.groups.as_deref().unwrap_or_default();
    if let Some(group) = groups.iter().find(|group| !GROUPS.contains(&group.as_str())) {
        return Some(format!("who asks is in group {group:?}"));
    }
    if subject.common_name != format!("{COMMON_NAME}{node}") {
        return Some(format!("node {node} asks for a certificate of {:?}", subject.common_name));
    }
    if !subject.is_all {
        return Some("it must be one request in PEM form and nothing besides".to_owned());
    }
    if subject.organizations != [ORGANIZATION] || subject.has_more {
        return Some(format!("the subject must be O={ORGANIZATION}, CN={COMMON_NAME}{node} and no more"));
    }
    match spec.expiration_seconds.map(u64::try_from) {
        Some(Ok(seconds)) if seconds <= LONGEST.as_secs() => None,
        Some(_) => Some("it is to be good for more than a year".to_owned()),
        None => Some("expirationSeconds is not set (Kubernetes knows it from 1.22 on)".to_owned()),
    }
}

/// Whom a certificate is asked for.
#[derive(Debug)]
struct Subject {
    common_name: String,
    organizations: Vec<String>,
    /// Whether there are names besides, alternative ones included.
    has_more: bool,
    /// Whether the request is all there is. The signer, which is another program, may read another part of what is sent.
    is_all: bool,
}

impl Subject {
    fn of(pem: &[u8]) -> Option<Self> {
        let text = pem;
        let (_, pem) = x509_parser::pem::parse_x509_pem(text).ok()?;
        let (rest, request) = X509CertificationRequest::from_der(&pem.contents).ok()?;
        let is_all = rest.is_empty() && without_spaces(text) == without_spaces(&composed(&pem.contents));
        let info = &request.certification_request_info;
        let name: &X509Name<'_> = &info.subject;
        let text = |attribute: &AttributeTypeAndValue<'_>| attribute.as_str().ok().map(str::to_owned);
        let common_names: Vec<String> = name.iter_common_name().filter_map(text).collect();
        let organizations: Vec<String> = name.iter_organization().filter_map(text).collect();
        let has_extensions = request.requested_extensions().is_some_and(|mut all| all.next().is_some());
        Some(Subject {
            has_more: name.iter_attributes().count() != common_names.len() + organizations.len()
                || common_names.len() != 1
                || has_extensions,
            is_all,
            common_name: common_names.into_iter().next()?,
            organizations,
        })
    }
}

/// A request in PEM form, but for its lines.
fn composed(der: &[u8]) -> Vec<u8> {
    format!("-----BEGIN {LABEL}-----{}-----END {LABEL}-----", BASE64.encode(der)).into_bytes()
}

fn without_spaces(text: &[u8]) -> Vec<u8> {
    text.iter().copied().filter(|byte| !byte.is_ascii_whitespace()).collect()
}

/// Answers every request that comes, for ever.
pub async fn follow(client: Client) {
    let api: Api<CertificateSigningRequest> = Api::all(client.clone());
    let recorder = Recorder::new(client, Reporter::from("multus-cert-approver"));
    let config = watcher::Config::default().fields(&format!("spec.signerName={SIGNER}"));
    let mut requests = pin!(watcher(api.clone(), config).default_backoff().applied_objects());
    while let Some(request) = requests.next().await {
        match request {
            Ok(request) => answer(&api, &recorder, &request).await,
            Err(error) => tracing::warn!("watching certificatesigningrequests: {error}; trying again"),
        }
    }
}

async fn answer(
    api: &Api<CertificateSigningRequest>,
    recorder: &Recorder,
    request: &CertificateSigningRequest,
) {
    let (condition, reason, message) = match verdict(request) {
        Verdict::NotOurs => return,
        Verdict::Approve => ("Approved", "AutoApproved", "a node asks for its own certificate".to_owned()),
        Verdict::Deny(objection) => ("Denied", "AutoDenied", objection),
    };
    let name = request.name_any();
    let condition = CertificateSigningRequestCondition {
        type_: condition.to_owned(),
        status: "True".to_owned(),
        reason: Some(reason.to_owned()),
        message: Some(message.clone()),
        last_update_time: Some(Time(Timestamp::now())),
        last_transition_time: None,
    };
    let kind = condition.type_.clone();
    // The whole object, as the peer sends it: third-party roles allow update of the approval, not patch. Whoever else has
    // answered meanwhile has answered: the object says of which version it is.
    let mut answered = request.clone();
    answered.status =
        Some(CertificateSigningRequestStatus { conditions: Some(vec![condition]), certificate: None });
    for _ in 0..ATTEMPTS {
        match api.replace_subresource("approval", &name, &PostParams::default(), &answered).await {
            Ok(_) => {
                tracing::info!(
                    "{name} of {}: {kind}: {message}",
                    request.spec.username.as_deref().unwrap_or("?")
                );
                let event = Event {
                    type_: if kind == "Approved" { EventType::Normal } else { EventType::Warning },
                    reason: format!("CSR{kind}"),
                    note: Some(message),
                    action: kind,
                    secondary: None,
                };
                // The object is in no namespace, but its events have to be in one, and older servers take this one alone.
                let mut about = request.object_ref(&());
                about.namespace = Some("default".to_owned());
                if let Err(error) = recorder.publish(&event, &about).await {
                    tracing::warn!("{name}: no event is told of it: {error}");
                }
                return;
            }
            Err(kube::Error::Api(status)) if matches!(status.code, 404 | 409) => return,
            Err(error) => tracing::warn!("{name} cannot be answered: {error}"),
        }
        tokio::time::sleep(PAUSE).await;
    }
}

/// Answers requests until told to end; `kubeconfig` is how, where this is not a pod.
///
/// # Errors
/// When there is no cluster.
pub async fn run(kubeconfig: Option<std::path::PathBuf>) -> Result<(), Error> {
    let stop = crate::daemon::told_to_end()?;
    let kubernetes = multus::kubernetes::Kubernetes::connect(kubeconfig.as_deref()).await?;
    let kubernetes =
        kubernetes.ok_or_else(|| Error::Usage("there is no cluster: this has to run as a pod".to_owned()))?;
    tokio::select! {
        () = follow(kubernetes.client()) => {}
        () = stop.cancelled() => {}
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::certificate::Request;
    use k8s_openapi::ByteString;
    use rcgen::{CertificateParams, DistinguishedName, DnType, KeyPair};

    fn request(pem: String) -> CertificateSigningRequest {
        let mut request = CertificateSigningRequest::default();
        request.spec.request = ByteString(pem.into_bytes());
        request.spec.signer_name = SIGNER.to_owned();
        request.spec.usages = Some(USAGES.map(str::to_owned).into());
        request.spec.username = Some("system:node:worker-1.x".to_owned());
        request.spec.groups = Some(vec!["system:nodes".to_owned(), "system:authenticated".to_owned()]);
        request.spec.expiration_seconds = Some(600);
        request
    }

    fn of_node() -> CertificateSigningRequest {
        request(Request::of_node("worker-1.x").unwrap().request)
    }

    fn named(names: &[(DnType, &str)], alternative: &[&str]) -> CertificateSigningRequest {
        let mut name = DistinguishedName::new();
        names.iter().for_each(|(kind, text)| name.push(kind.clone(), *text));
        let alternative: Vec<String> = alternative.iter().map(|name| (*name).to_owned()).collect();
        let mut params = CertificateParams::new(alternative).unwrap();
        params.distinguished_name = name;
        let key = KeyPair::generate().unwrap();
        request(params.serialize_request(&key).unwrap().pem().unwrap())
    }

    #[test]
    fn a_node_gets_its_own() {
        assert_eq!(verdict(&of_node()), Verdict::Approve);
        let mut renewal = of_node();
        renewal.spec.username = Some("system:multus:worker-1.x".to_owned());
        renewal.spec.groups = Some(vec![ORGANIZATION.to_owned()]);
        assert_eq!(verdict(&renewal), Verdict::Approve);
    }

    #[test]
    fn and_nothing_else() {
        let changed = |change: fn(&mut CertificateSigningRequest)| {
            let mut request = of_node();
            change(&mut request);
            verdict(&request)
        };
        let table: [(&str, Verdict); 9] = [
            ("no node", changed(|r| r.spec.username = Some("system:serviceaccount:a:b".to_owned()))),
            ("no name", changed(|r| r.spec.username = Some("system:node:A_b".to_owned()))),
            ("usages", changed(|r| r.spec.usages = Some(vec!["server auth".to_owned()]))),
            ("group", changed(|r| r.spec.groups = Some(vec!["system:masters".to_owned()]))),
            ("asks for", changed(|r| r.spec.username = Some("system:node:worker-2".to_owned()))),
            ("year", changed(|r| r.spec.expiration_seconds = Some(40_000_000))),
            ("expirationSeconds", changed(|r| r.spec.expiration_seconds = None)),
            (
                "no more",
                verdict(&named(
                    &[
                        (DnType::OrganizationName, "system:masters"),
                        (DnType::CommonName, "system:multus:worker-1.x"),
                    ],
                    &[],
                )),
            ),
            (
                "no more",
                verdict(&named(
                    &[
                        (DnType::OrganizationName, ORGANIZATION),
                        (DnType::CommonName, "system:multus:worker-1.x"),
                    ],
                    &["kubernetes.default.svc"],
                )),
            ),
        ];
        for (part, verdict) in table {
            assert!(matches!(&verdict, Verdict::Deny(why) if why.contains(part)), "{part}: {verdict:?}");
        }
    }

    #[test]
    fn one_that_others_may_read_otherwise_is_denied() {
        let own = Request::of_node("worker-1.x").unwrap().request;
        let master = Request::of_node("master").unwrap().request;
        let crlf = own.replace('\n', "\r\n");
        assert_eq!(verdict(&request(format!("\n{crlf}\n"))), Verdict::Approve);
        let headed = own.replacen("-----\n", "-----\nX: y\n\n", 1);
        for text in [format!("{own}{master}"), format!("x\n{own}"), format!("{own}x"), headed] {
            let verdict = verdict(&request(text.clone()));
            assert!(verdict != Verdict::Approve, "{verdict:?}: {text}");
        }
        let two = verdict(&request(format!("{own}{master}")));
        assert!(matches!(&two, Verdict::Deny(why) if why.contains("nothing besides")), "{two:?}");
    }

    #[test]
    fn what_is_another_s_is_left_alone() {
        let mut other = of_node();
        other.spec.signer_name = "kubernetes.io/kubelet-serving".to_owned();
        assert_eq!(verdict(&other), Verdict::NotOurs);
        let kubelet = named(&[(DnType::CommonName, "system:node:worker-1")], &[]);
        assert_eq!(verdict(&kubelet), Verdict::NotOurs);
        assert_eq!(verdict(&request("garbage".to_owned())), Verdict::NotOurs);
        let mut answered = of_node();
        let condition = CertificateSigningRequestCondition::default();
        answered.status =
            Some(CertificateSigningRequestStatus { conditions: Some(vec![condition]), certificate: None });
        assert_eq!(verdict(&answered), Verdict::NotOurs);
    }
}
