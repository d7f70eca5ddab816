//! Who asked what, for tests that count.

use super::url::{Place, Verb};

/// One request that reached the server, whatever became of it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Request {
    /// What was wanted.
    pub verb: Verb,
    /// Path without query.
    pub path: String,
    /// Query string, not decoded.
    pub query: String,
    /// API group; empty for the core group and for requests about no resource.
    pub group: String,
    /// Plural name of the kind; empty for requests about no resource (`/version`, discovery).
    pub resource: String,
    /// `status`, `binding`; empty for the object itself.
    pub subresource: String,
    /// Namespace; empty if the path names none.
    pub namespace: String,
    /// Name of the object; empty for collections.
    pub name: String,
    /// User whose credentials came with the request; empty without credentials.
    pub user: String,
    /// `User-Agent` header, which tells the programs apart.
    pub user_agent: String,
    /// HTTP status of the answer; `None` as long as there is none, and if there never was one.
    pub status: Option<u16>,
}

impl Request {
    pub(super) fn new(verb: Verb, path: &str, query: &str, place: Option<&Place>) -> Self {
        let field = |field: fn(&Place) -> &String| place.map(field).cloned().unwrap_or_default();
        Self {
            verb,
            path: path.to_owned(),
            query: query.to_owned(),
            group: field(|place| &place.group),
            resource: field(|place| &place.resource),
            subresource: field(|place| &place.subresource),
            namespace: field(|place| &place.namespace),
            name: field(|place| &place.name),
            user: String::new(),
            user_agent: String::new(),
            status: None,
        }
    }
}

/// The requests since the test last forgot them.
#[derive(Debug, Default)]
pub(super) struct Log {
    forgotten: usize,
    requests: Vec<Request>,
}

impl Log {
    /// Notes a request and returns its number, which stays good when requests are forgotten.
    pub(super) fn push(&mut self, request: Request) -> usize {
        self.requests.push(request);
        self.forgotten + self.requests.len() - 1
    }

    /// Notes how a request was answered, unless it is forgotten.
    pub(super) fn note_status(&mut self, number: usize, status: u16) {
        let request = number.checked_sub(self.forgotten).and_then(|index| self.requests.get_mut(index));
        if let Some(request) = request {
            request.status = Some(status);
        }
    }

    /// The requests, in order of arrival.
    pub(super) fn iter(&self) -> impl Iterator<Item = &Request> {
        self.requests.iter()
    }

    /// Forgets the requests.
    pub(super) fn clear(&mut self) {
        self.forgotten += self.requests.len();
        self.requests.clear();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_answer_does_not_land_on_a_later_request() {
        let mut log = Log::default();
        let slow = log.push(Request::new(Verb::Get, "/slow", "", None));
        log.clear();
        let quick = log.push(Request::new(Verb::Get, "/quick", "", None));
        log.note_status(slow, 500);
        assert_eq!(log.iter().map(|request| request.status).collect::<Vec<_>>(), [None]);
        log.note_status(quick, 200);
        assert_eq!(log.iter().map(|request| request.status).collect::<Vec<_>>(), [Some(200)]);
    }
}
