//! A network plugin that attaches nothing, for `podrail-e2e bench`: what is left of a call is the caller's.

fn main() {
    if std::env::var_os("CNI_COMMAND").is_some_and(|verb| verb == "ADD") {
        println!(
            r#"{{"cniVersion":"1.0.0","interfaces":[{{"name":"x","sandbox":"/n"}}],"ips":[{{"address":"10.0.0.2/24"}}]}}"#
        );
    }
}
