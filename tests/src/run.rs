//! Runs scenarios and tells what came of them.

use std::path::Path;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result};
use serde_json::json;

use crate::node::Grade;
use crate::scenarios::Scenario;
use crate::session::{Session, Setup};
use crate::table;
use crate::vfs::Vfs;

/// Longest time that one scenario may take.
const LIMIT: Duration = Duration::from_secs(900);

/// What came of one scenario.
#[derive(Debug)]
enum Outcome {
    Passed,
    Failed(String),
    NotRun(String),
}

#[derive(Debug)]
struct Finished {
    name: &'static str,
    outcome: Outcome,
    seconds: f64,
}

/// Runs the `scenarios` whose name contains one of `filters`, where there are some, prints a line for each and a table at the end, and writes
/// `report`; whether all passed.
///
/// # Errors
/// The node cannot be prepared, or the report not be written.
pub async fn run(
    setup: &Setup,
    scenarios: &[Scenario],
    filters: &[String],
    report: Option<&Path>,
) -> Result<bool> {
    let chosen = chosen(scenarios, filters)?;
    let started = Instant::now();
    println!("{}: {} scenarios", setup.grade, chosen.len());
    let mut session =
        Session::start(setup, &mut |line| println!("  {line}")).await.context("prepare the node")?;
    println!("  node ready after {:.1} s\n", started.elapsed().as_secs_f64());
    let mut before = session.vfs().await?;

    let mut finished = Vec::new();
    for scenario in chosen {
        let started = Instant::now();
        let outcome = match scenario.obstacle(setup.grade, setup.sources.thick) {
            Some(reason) => Outcome::NotRun(reason.to_owned()),
            None => one(&mut session, scenario, &mut before).await,
        };
        let finish = Finished { name: scenario.name, outcome, seconds: started.elapsed().as_secs_f64() };
        println!("{}", line(&finish));
        finished.push(finish);
    }
    session.stop().await;
    let count =
        |wanted: fn(&Outcome) -> bool| finished.iter().filter(|finish| wanted(&finish.outcome)).count();
    let passed = count(|outcome| matches!(outcome, Outcome::Passed));
    let failed = count(|outcome| matches!(outcome, Outcome::Failed(_)));

    println!();
    for line in summary(&finished) {
        println!("{line}");
    }
    for finish in &finished {
        if let Outcome::NotRun(reason) = &finish.outcome {
            println!("not run: {} ({reason})", finish.name);
        }
    }
    if let Some(path) = report {
        let text = to_json(setup.grade, &finished, passed, failed);
        std::fs::write(path, text).with_context(|| format!("write {}", path.display()))?;
    }
    println!("{passed} passed, {failed} failed");
    Ok(failed == 0)
}

/// The scenarios with one of `filters` in their name; each of these has to mean something.
fn chosen<'a>(scenarios: &'a [Scenario], filters: &[String]) -> Result<Vec<&'a Scenario>> {
    for filter in filters {
        let means_something = scenarios.iter().any(|scenario| scenario.name.contains(filter));
        anyhow::ensure!(means_something, "no scenario has {filter:?} in its name");
    }
    let is_chosen = |scenario: &&Scenario| {
        filters.is_empty() || filters.iter().any(|filter| scenario.name.contains(filter))
    };
    Ok(scenarios.iter().filter(is_chosen).collect())
}

/// Runs a scenario and everything that has to hold after it.
async fn one(session: &mut Session, scenario: &Scenario, before: &mut Vfs) -> Outcome {
    let ran = tokio::time::timeout(LIMIT, (scenario.run)(session)).await;
    let ran = ran.unwrap_or_else(|_| Err(anyhow::anyhow!("not finished in {} s", LIMIT.as_secs())));
    let cleaned = session.cluster.clean().await.context("afterwards");
    if std::mem::take(&mut session.renewed)
        && let Ok(now) = session.vfs().await
    {
        // New VFs have new addresses.
        *before = now;
    }
    let unchanged = session.ensure_unchanged(before).await.context("afterwards");
    if unchanged.is_err()
        && let Ok(now) = session.vfs().await
    {
        // One scenario's damage is told once.
        *before = now;
    }
    let errors: Vec<String> = [ran, cleaned, unchanged]
        .into_iter()
        .filter_map(Result::err)
        .map(|error| format!("{error:#}"))
        .collect();
    if errors.is_empty() { Outcome::Passed } else { Outcome::Failed(errors.join("\n")) }
}

fn line(finish: &Finished) -> String {
    let Finished { name, outcome, seconds } = finish;
    match outcome {
        Outcome::Passed => format!("ok       {seconds:6.1} s  {name}"),
        Outcome::Failed(error) => {
            format!("FAILED   {seconds:6.1} s  {name}\n{}", indented(error))
        }
        Outcome::NotRun(reason) => format!("not run: {name} ({reason})"),
    }
}

fn indented(text: &str) -> String {
    text.lines().map(|line| format!("                    {line}")).collect::<Vec<_>>().join("\n")
}

fn summary(finished: &[Finished]) -> Vec<String> {
    let rows: Vec<Vec<String>> = finished
        .iter()
        .map(|finish| {
            let outcome = match finish.outcome {
                Outcome::Passed => "passed",
                Outcome::Failed(_) => "FAILED",
                Outcome::NotRun(_) => "not run",
            };
            vec![finish.name.to_owned(), outcome.to_owned(), format!("{:.1}", finish.seconds)]
        })
        .collect();
    table::lines(&["scenario", "outcome", "seconds"], &rows)
}

fn to_json(grade: Grade, finished: &[Finished], passed: usize, failed: usize) -> String {
    let scenarios: Vec<_> = finished
        .iter()
        .map(|finish| {
            let (outcome, text) = match &finish.outcome {
                Outcome::Passed => ("passed", None),
                Outcome::Failed(error) => ("failed", Some(error)),
                Outcome::NotRun(reason) => ("not run", Some(reason)),
            };
            json!({"name": finish.name, "outcome": outcome, "seconds": finish.seconds, "text": text})
        })
        .collect();
    let report = json!({
        "node": grade.to_string(),
        "passed": passed,
        "failed": failed,
        "notRun": finished.len() - passed - failed,
        "scenarios": scenarios,
    });
    format!("{report:#}\n")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn filters_choose_by_name() {
        let all = crate::scenarios::ALL;
        let count = |filters: &[&str]| {
            let filters: Vec<String> = filters.iter().map(|text| (*text).to_owned()).collect();
            chosen(all, &filters).map(|chosen| chosen.len())
        };
        assert_eq!(count(&[]).unwrap(), all.len());
        assert_eq!(count(&["the node advertises every VF", "DEL can be repeated"]).unwrap(), 2);
        assert!(count(&["DEL can be repeated", "no such scenario"]).is_err());
    }

    #[test]
    fn the_report_counts_everything() {
        let finished = [
            Finished { name: "a", outcome: Outcome::Passed, seconds: 1.0 },
            Finished { name: "b", outcome: Outcome::Failed("x\ny".into()), seconds: 2.0 },
            Finished { name: "c", outcome: Outcome::NotRun("why".into()), seconds: 0.0 },
        ];
        let report: serde_json::Value =
            serde_json::from_str(&to_json(Grade::Simulated, &finished, 1, 1)).unwrap();
        assert_eq!(report["notRun"], 1);
        assert_eq!(report["scenarios"][1]["text"], "x\ny");
        assert_eq!(line(&finished[2]), "not run: c (why)");
        assert_eq!(summary(&finished)[3], "b         FAILED   2.0");
    }
}
