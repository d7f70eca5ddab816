//! Trouble on demand: answers, delays and broken connections that a test orders beforehand.

use std::time::Duration;

use super::url::Verb;

/// What happens to a request that a fault matches.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Action {
    /// Refused with this code; the request has no effect.
    Answer { code: u16, retry_after: Option<u64> },
    /// The connection breaks before the request has any effect.
    Drop,
    /// The connection breaks after the request took effect: the client cannot know.
    DropAfter,
    /// Answered later.
    Delay(Duration),
    /// Never answered.
    Hang,
}

/// One piece of trouble: which requests it meets, how many of them, and what happens to those.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Fault {
    verb: Option<Verb>,
    path: String,
    skip: usize,
    times: usize,
    pub(super) action: Action,
}

impl Fault {
    /// Meets requests of one verb, or of any with `None`, whose path begins with `path`.
    ///
    /// `/api/v1/namespaces/default/pods/p` meets the pod and its status, `/` and the empty path meet everything.
    #[must_use]
    pub fn on(verb: impl Into<Option<Verb>>, path: impl Into<String>) -> Self {
        Self {
            verb: verb.into(),
            path: path.into(),
            skip: 0,
            times: usize::MAX,
            action: Action::Answer { code: 500, retry_after: None },
        }
    }

    /// Lets the first `count` matching requests pass.
    #[must_use]
    pub fn skip(mut self, count: usize) -> Self {
        self.skip = count;
        self
    }

    /// Ends after `count` requests. Without it the fault stays until it is cleared.
    #[must_use]
    pub fn times(mut self, count: usize) -> Self {
        self.times = count;
        self
    }

    /// Refuses with this HTTP status and a fitting Status object.
    #[must_use]
    pub fn answer(mut self, code: u16) -> Self {
        self.action = Action::Answer { code, retry_after: None };
        self
    }

    /// Refuses with this HTTP status and a `Retry-After` header, in seconds.
    #[must_use]
    pub fn answer_retry_after(mut self, code: u16, seconds: u64) -> Self {
        self.action = Action::Answer { code, retry_after: Some(seconds) };
        self
    }

    /// Breaks the connection before the request has any effect.
    #[must_use]
    pub fn drop_connection(mut self) -> Self {
        self.action = Action::Drop;
        self
    }

    /// Breaks the connection after the request took effect, so that the answer is lost.
    #[must_use]
    pub fn drop_answer(mut self) -> Self {
        self.action = Action::DropAfter;
        self
    }

    /// Handles the request only after that time.
    #[must_use]
    pub fn delay(mut self, time: Duration) -> Self {
        self.action = Action::Delay(time);
        self
    }

    /// Keeps the connection open and never answers; ends when the faults are cleared or the client gives up.
    #[must_use]
    pub fn hang(mut self) -> Self {
        self.action = Action::Hang;
        self
    }

    fn matches(&self, verb: Verb, path: &str) -> bool {
        self.verb.is_none_or(|wanted| wanted == verb) && path.starts_with(&self.path)
    }
}

/// The faults in force, in the order in which they were ordered.
#[derive(Debug, Default)]
pub(super) struct Faults(Vec<Fault>);

impl Faults {
    /// Adds a fault behind those in force.
    pub(super) fn push(&mut self, fault: Fault) {
        self.0.push(fault);
    }

    /// Ends all faults.
    pub(super) fn clear(&mut self) {
        self.0.clear();
    }

    /// Faults that have not ended.
    pub(super) fn len(&self) -> usize {
        self.0.len()
    }

    /// The action of the first fault that meets a request; uses the fault up by one.
    pub(super) fn meet(&mut self, verb: Verb, path: &str) -> Option<Action> {
        let mut met = None;
        for fault in self.0.iter_mut().filter(|fault| fault.matches(verb, path)) {
            if fault.skip > 0 {
                fault.skip -= 1;
            } else if fault.times > 0 {
                if fault.times != usize::MAX {
                    fault.times -= 1;
                }
                met = Some(fault.action.clone());
                break;
            }
        }
        self.0.retain(|fault| fault.times > 0);
        met
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn faults_meet_what_they_name_as_often_as_they_say() {
        let mut faults = Faults::default();
        faults.push(Fault::on(Verb::Patch, "/api/v1/namespaces/a/").skip(1).times(2).answer(429));
        faults.push(Fault::on(None, "/apis").drop_connection());
        let refused = Some(Action::Answer { code: 429, retry_after: None });
        let table = [
            (Verb::Get, "/api/v1/namespaces/a/pods/p", None),
            (Verb::Patch, "/api/v1/namespaces/b/pods/p", None),
            (Verb::Patch, "/api/v1/namespaces/a/pods/p", None),
            (Verb::Patch, "/api/v1/namespaces/a/pods/p", refused.clone()),
            (Verb::Patch, "/api/v1/namespaces/a/pods/q", refused),
            (Verb::Patch, "/api/v1/namespaces/a/pods/p", None),
            (Verb::List, "/apis/x", Some(Action::Drop)),
            (Verb::List, "/apis/x", Some(Action::Drop)),
        ];
        for (index, (verb, path, expected)) in table.into_iter().enumerate() {
            assert_eq!(faults.meet(verb, path), expected, "row {index}");
        }
        assert_eq!(faults.len(), 1);
        faults.clear();
        assert_eq!(faults.meet(Verb::List, "/apis/x"), None);
    }
}
