//! `passthru`: a plugin that does nothing, for configurations whose every plugin is chained by somebody else.
//!
//! The shim is it when it is called by that name.

use std::collections::BTreeMap;

use crate::json::{Value, object, text};

/// Name of the program.
pub(crate) const NAME: &str = "passthru";

/// What it prints: an empty result for ADD, nothing for the rest.
pub(crate) fn answer(environment: &BTreeMap<String, String>, stdin: &[u8]) -> String {
    if environment.get("CNI_COMMAND").map(String::as_str) != Some("ADD") {
        return String::new();
    }
    let conf = Value::parse(stdin).unwrap_or(Value::Null);
    object([("cniVersion", text(conf.text("cniVersion").unwrap_or("0.1.0")))]).pretty()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn add_alone_has_a_result() {
        let environment = |verb: &str| BTreeMap::from([("CNI_COMMAND".to_owned(), verb.to_owned())]);
        let stdin = br#"{"cniVersion":"0.4.0","name":"n","type":"passthru"}"#;
        assert_eq!(answer(&environment("ADD"), stdin), "{\n    \"cniVersion\": \"0.4.0\"\n}");
        assert_eq!(answer(&environment("DEL"), stdin), "");
    }
}
