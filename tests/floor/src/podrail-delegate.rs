//! A network plugin that attaches nothing, for `podrail-e2e bench`: what is left of a call is the caller's.

use std::io::Read as _;

fn main() -> std::io::Result<()> {
    // As any plugin does, so that the caller's pipe does not break.
    std::io::stdin().read_to_end(&mut Vec::new())?;
    if std::env::var_os("CNI_COMMAND").is_some_and(|verb| verb == "ADD") {
        println!(
            r#"{{"cniVersion":"1.0.0","interfaces":[{{"name":"x","sandbox":"/n"}}],"ips":[{{"address":"10.0.0.2/24"}}]}}"#
        );
    }
    Ok(())
}
