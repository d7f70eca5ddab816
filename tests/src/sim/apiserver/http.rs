//! From HTTP to the verbs and back.

use std::convert::Infallible;
use std::sync::Arc;
use std::time::Duration;

use futures_util::stream;
use http_body_util::combinators::UnsyncBoxBody;
use http_body_util::{BodyExt as _, Full, Limited, StreamBody};
use hyper::body::{Bytes, Frame, Incoming};
use hyper::header::{ACCEPT, AUTHORIZATION, CONTENT_TYPE, HeaderMap, HeaderValue, RETRY_AFTER, USER_AGENT};
use hyper::{Response, StatusCode};
use k8s_openapi::jiff::Timestamp;
use serde_json::{Value, json};
use tokio::time::Instant;

use super::access::{self, Wish};
use super::api::{Scope, Written};
use super::delete::DeleteOptions;
use super::discovery;
use super::failure::Failure;
use super::fault::Action;
use super::kinds::Nature;
use super::log::Request;
use super::patch::Patch;
use super::rules::Part;
use super::serve::{Caller, Shared, lock};
use super::url::{self, Place, Query, Verb};
use super::watch::Watch;

/// Body of an answer: whole, or a stream of watch events.
pub(super) type Body = UnsyncBoxBody<Bytes, Infallible>;

/// The connection is to be closed without an answer.
#[derive(Debug)]
pub(super) struct Broken;

/// kube-apiserver's limit for a request body.
const BODY_LIMIT: usize = 3 * 1024 * 1024;

/// Answers one request.
///
/// `certified` is the user of the client certificate, if the connection came with one.
pub(super) async fn answer(
    shared: Arc<Shared>,
    certified: Option<Arc<str>>,
    request: hyper::Request<Incoming>,
) -> Result<Response<Body>, Broken> {
    let (parts, body) = request.into_parts();
    let path = parts.uri.path().to_owned();
    let text = parts.uri.query().unwrap_or_default();
    let query = Query::parse(text);
    let place = Place::parse(&path);
    let Some(verb) = url::verb(parts.method.as_str(), place.as_ref(), &query) else {
        return Ok(refuse(&Failure::method_not_allowed()));
    };
    let bearer = parts.headers.get(AUTHORIZATION).map(HeaderValue::as_bytes);
    let caller = shared.caller(bearer, certified.as_deref());
    let mut entry = Request::new(verb, &path, text, place.as_ref());
    if let Caller::Known(user) = &caller {
        entry.user.clone_from(user);
    }
    entry.user_agent = header(&parts.headers, USER_AGENT.as_str()).to_owned();
    let number = lock(&shared.requests).push(entry);

    let met = lock(&shared.faults).meet(verb, &path);
    let respond = async {
        let body = match Limited::new(body, BODY_LIMIT).collect().await {
            Ok(body) => body.to_bytes(),
            Err(error) => return refuse(&Failure::bad_request(format!("request body: {error}"))),
        };
        let asked = Asked { verb, path: &path, place, query, headers: &parts.headers, body };
        let user = match &caller {
            Caller::Unknown => return refuse(&Failure::unauthorized()),
            Caller::Anonymous => access::ANONYMOUS,
            Caller::Known(user) => user,
        };
        match asked.check(&shared, user) {
            Ok(()) => serve(&shared, &asked),
            Err(failure) => refuse(&failure),
        }
    };
    let response = match met {
        None => respond.await,
        Some(Action::Answer { code, retry_after }) => refuse(&Failure::injected(code, retry_after)),
        Some(Action::Drop) => return Err(Broken),
        Some(Action::DropAfter) => {
            let lost = respond.await;
            lock(&shared.requests).note_status(number, lost.status().as_u16());
            return Err(Broken);
        }
        Some(Action::Delay(time)) => {
            tokio::time::sleep(time).await;
            respond.await
        }
        Some(Action::Hang) => {
            shared.faults_cleared().await;
            return Err(Broken);
        }
    };
    lock(&shared.requests).note_status(number, response.status().as_u16());
    Ok(response)
}

/// A request, taken apart.
struct Asked<'a> {
    verb: Verb,
    path: &'a str,
    place: Option<Place>,
    query: Query,
    headers: &'a HeaderMap,
    body: Bytes,
}

impl Asked<'_> {
    /// Refuses what the user has no right to.
    fn check(&self, shared: &Shared, user: &str) -> Result<(), Failure> {
        let Some(place) = &self.place else {
            // Discovery is open to everybody with a name.
            return if user != access::ANONYMOUS || is_public(self.path) {
                Ok(())
            } else {
                Err(Failure::forbidden_path(user, self.verb, self.path))
            };
        };
        let wish = Wish {
            verb: self.verb,
            group: &place.group,
            resource: &place.resource,
            subresource: &place.subresource,
            namespace: &place.namespace,
            name: &place.name,
        };
        if lock(&shared.api).may(user, wish) { Ok(()) } else { Err(Failure::forbidden(user, wish)) }
    }

    fn json(&self) -> Result<Value, Failure> {
        if !matches!(media_type(self.headers), "" | "application/json") {
            return Err(Failure::unsupported_media_type(&["application/json"]));
        }
        serde_json::from_slice(&self.body).map_err(|error| {
            Failure::bad_request(format!("couldn't get version/kind; json parse error: {error}"))
        })
    }

    fn delete_options(&self) -> Result<DeleteOptions, Failure> {
        let mut options: DeleteOptions = if self.body.is_empty() {
            DeleteOptions::default()
        } else {
            serde_json::from_value(self.json()?)
                .map_err(|error| Failure::bad_request(format!("DeleteOptions: {error}")))?
        };
        if let Ok(seconds) = self.query.get("gracePeriodSeconds").parse() {
            options.grace_period_seconds = Some(seconds);
        }
        Ok(options)
    }
}

fn is_public(path: &str) -> bool {
    path == "/version" || ["/healthz", "/readyz", "/livez"].iter().any(|public| path.starts_with(public))
}

fn serve(shared: &Arc<Shared>, asked: &Asked<'_>) -> Response<Body> {
    if is_public(asked.path) && asked.path != "/version" {
        return reply(StatusCode::OK, "text/plain; charset=utf-8", "ok");
    }
    if asked.path == "/version" {
        return to_json(StatusCode::OK, &version());
    }
    let found = {
        let api = lock(&shared.api);
        asked.place.as_ref().and_then(|place| {
            let kind = api.kinds.find(&place.group, &place.version, &place.resource)?;
            // Objects in namespaces are reached through one, but for reading a collection across all of them.
            let reached = match (kind.namespaced, place.namespace.is_empty()) {
                (true, true) => place.name.is_empty(),
                (namespaced, named) => namespaced != named,
            };
            let served =
                kind.version(&place.version).is_some_and(|version| match place.subresource.as_str() {
                    "" => true,
                    "status" => version.status,
                    "binding" | "eviction" => kind.nature == Nature::Pod,
                    "token" => kind.nature == Nature::ServiceAccount,
                    _ => false,
                });
            (reached && served).then(|| Scope {
                kind,
                version: place.version.clone(),
                namespace: place.namespace.clone(),
            })
        })
    };
    let (Some(scope), Some(place)) = (found, asked.place.as_ref()) else {
        let described = discovery::answer(&lock(&shared.api).kinds, asked.path);
        return match described {
            Some(described) if asked.verb == Verb::Get => to_json(StatusCode::OK, &described),
            Some(_) => refuse(&Failure::method_not_allowed()),
            None => refuse(&Failure::no_resource()),
        };
    };
    if asked.verb == Verb::Watch {
        let watch = Watch::start(&lock(&shared.api), scope, &asked.query);
        return match watch {
            Ok(watch) => follow(shared, watch, &asked.query),
            Err(failure) => refuse(&failure),
        };
    }
    match shared.transact(|api| act(api, &scope, place, asked)) {
        Ok((status, object)) => to_json(status, &shape(object, header(asked.headers, ACCEPT.as_str()))),
        Err(failure) => refuse(&failure),
    }
}

fn act(
    api: &mut super::api::Api,
    scope: &Scope,
    place: &Place,
    asked: &Asked<'_>,
) -> Result<(StatusCode, Value), Failure> {
    let now = Timestamp::now();
    let name = place.name.as_str();
    let part = if place.subresource == "status" { Part::Status } else { Part::Main };
    // A dry run is a run on a copy.
    let mut copy;
    let api = if asked.query.get("dryRun") == "All" {
        copy = api.clone();
        &mut copy
    } else {
        api
    };
    let ok = |object| Ok((StatusCode::OK, object));
    match (asked.verb, place.subresource.as_str()) {
        (Verb::Get, "" | "status") => ok(api.get(scope, name)?),
        (Verb::List, "") => ok(api.list(scope, &asked.query)?.into_list(scope)),
        (Verb::Create, "") if name.is_empty() && scope.kind.namespaced != scope.namespace.is_empty() => {
            let created = api.create(scope, asked.json()?, now)?;
            Ok((StatusCode::CREATED, created))
        }
        (Verb::Create, "binding") => Ok((StatusCode::CREATED, api.bind(scope, name, &asked.json()?, now)?)),
        (Verb::Create, "token") => {
            Ok((StatusCode::CREATED, api.request_token(scope, name, &asked.json()?, now)?))
        }
        (Verb::Create, "eviction") => {
            api.delete(scope, name, &DeleteOptions::default(), now)?;
            let status = json!({"kind": "Status", "apiVersion": "v1", "metadata": {}, "status": "Success", "code": 201});
            Ok((StatusCode::CREATED, status))
        }
        (Verb::Update, "" | "status") if !name.is_empty() => {
            match api.update(scope, name, part, asked.json()?, now)? {
                Written::Created(object) => Ok((StatusCode::CREATED, object)),
                Written::Updated(object) => ok(object),
            }
        }
        (Verb::Patch, "" | "status") if !name.is_empty() => {
            let patch = Patch::parse(media_type(asked.headers), &asked.body, scope.kind.is_custom())?;
            ok(api.patch(scope, name, part, &patch, now)?)
        }
        (Verb::Delete, "") => {
            let options = asked.delete_options()?;
            if options.dry_run.iter().any(|run| run == "All") {
                return ok(api.clone().delete(scope, name, &options, now)?);
            }
            ok(api.delete(scope, name, &options, now)?)
        }
        (Verb::DeleteCollection, "") if scope.kind.namespaced != scope.namespace.is_empty() => {
            let page = api.list(scope, &asked.query)?;
            api.delete_all(scope, &page.names(), &asked.delete_options()?, now);
            ok(page.into_list(scope))
        }
        _ => Err(Failure::method_not_allowed()),
    }
}

/// The same version that the real node of the lab runs.
fn version() -> Value {
    json!({
        "major": "1", "minor": "20", "gitVersion": "v1.20.2", "gitCommit": "simulated", "gitTreeState": "clean",
        "buildDate": "1970-01-01T00:00:00Z", "goVersion": "none", "compiler": "none", "platform": "linux/amd64",
    })
}

/// Streams a watch until the client leaves, its time is up, or the server drops its watches.
fn follow(shared: &Arc<Shared>, watch: Watch, query: &Query) -> Response<Body> {
    let deadline =
        query.get("timeoutSeconds").parse().ok().map(|seconds| Instant::now() + Duration::from_secs(seconds));
    let bookmarks = query.is_true("allowWatchBookmarks");
    let followed = Followed {
        revisions: shared.revisions.subscribe(),
        drops: shared.watch_drops.subscribe(),
        next_bookmark: Instant::now() + shared.options.bookmark_every,
        shared: Arc::clone(shared),
        watch,
        deadline,
        bookmarks,
        over: false,
    };
    let frames = stream::unfold(followed, |mut followed| async {
        let bytes = followed.next().await?;
        Some((Ok::<_, Infallible>(Frame::data(bytes)), followed))
    });
    let mut response = Response::new(StreamBody::new(frames).boxed_unsync());
    set_header(response.headers_mut(), CONTENT_TYPE.as_str(), "application/json");
    response
}

struct Followed {
    shared: Arc<Shared>,
    watch: Watch,
    revisions: tokio::sync::watch::Receiver<u64>,
    drops: tokio::sync::watch::Receiver<u64>,
    deadline: Option<Instant>,
    next_bookmark: Instant,
    bookmarks: bool,
    over: bool,
}

impl Followed {
    /// The next bytes of the stream; `None` when it ends.
    async fn next(&mut self) -> Option<Bytes> {
        while !self.over {
            self.revisions.mark_unchanged();
            let frames = self.watch.advance(&lock(&self.shared.api));
            self.over = self.watch.is_over();
            if !frames.is_empty() {
                return Some(lines(&frames));
            }
            let deadline = self.deadline;
            let time_is_up = async {
                match deadline {
                    Some(deadline) => tokio::time::sleep_until(deadline).await,
                    None => std::future::pending().await,
                }
            };
            tokio::select! {
                changed = self.revisions.changed() => self.over = changed.is_err(),
                _ = self.drops.changed() => self.over = true,
                () = time_is_up => {
                    self.over = true;
                    if self.bookmarks {
                        return Some(lines(&[self.watch.bookmark()]));
                    }
                }
                () = tokio::time::sleep_until(self.next_bookmark), if self.bookmarks => {
                    self.next_bookmark = Instant::now() + self.shared.options.bookmark_every;
                    return Some(lines(&[self.watch.bookmark()]));
                }
            }
        }
        None
    }
}

fn lines(frames: &[Value]) -> Bytes {
    frames.iter().map(|frame| format!("{frame}\n")).collect::<String>().into()
}

/// Cuts objects down to their metadata for clients that accept that form first.
fn shape(object: Value, accept: &str) -> Value {
    let wanted = accept.split(',').next().unwrap_or_default();
    let partial = |object: &Value| {
        json!({
            "kind": "PartialObjectMetadata", "apiVersion": "meta.k8s.io/v1",
            "metadata": object.get("metadata").cloned().unwrap_or_default(),
        })
    };
    if object.get("kind").and_then(Value::as_str) == Some("Status") {
        return object;
    }
    if wanted.contains("as=PartialObjectMetadataList") {
        let items: Vec<Value> =
            object.get("items").and_then(Value::as_array).into_iter().flatten().map(partial).collect();
        return json!({
            "kind": "PartialObjectMetadataList", "apiVersion": "meta.k8s.io/v1",
            "metadata": object.get("metadata"), "items": items,
        });
    }
    if wanted.contains("as=PartialObjectMetadata;") || wanted.ends_with("as=PartialObjectMetadata") {
        return partial(&object);
    }
    object
}

fn header<'a>(headers: &'a HeaderMap, name: &str) -> &'a str {
    headers.get(name).and_then(|value| value.to_str().ok()).unwrap_or_default()
}

fn media_type(headers: &HeaderMap) -> &str {
    header(headers, CONTENT_TYPE.as_str()).split(';').next().unwrap_or_default().trim()
}

fn set_header(headers: &mut HeaderMap, name: &'static str, value: &str) {
    if let Ok(value) = value.parse() {
        headers.insert(name, value);
    }
}

fn reply(status: StatusCode, media_type: &str, text: impl Into<Bytes>) -> Response<Body> {
    let mut response = Response::new(Full::new(text.into()).boxed_unsync());
    *response.status_mut() = status;
    set_header(response.headers_mut(), CONTENT_TYPE.as_str(), media_type);
    response
}

fn to_json(status: StatusCode, value: &Value) -> Response<Body> {
    reply(status, "application/json", value.to_string())
}

fn refuse(failure: &Failure) -> Response<Body> {
    let status = StatusCode::from_u16(failure.code).unwrap_or(StatusCode::INTERNAL_SERVER_ERROR);
    let mut response = to_json(status, &failure.to_status());
    if let Some(seconds) = failure.retry_after {
        set_header(response.headers_mut(), RETRY_AFTER.as_str(), &seconds.to_string());
    }
    response
}
