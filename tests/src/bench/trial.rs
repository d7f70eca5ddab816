//! Several ways to do the same thing, measured in turn.

use std::time::Duration;

use anyhow::{Context as _, Result};

use super::call::{Call, Cost};

/// One way to do it: calls that leave, together, everything as it was.
#[derive(Debug)]
pub(super) struct Subject {
    /// What it is called in the figures.
    pub(super) name: &'static str,
    /// The calls, in order.
    pub(super) calls: Vec<Call>,
}

/// What the calls of a subject cost in all rounds: `[call][round]`.
pub(super) type Costs = Vec<Vec<Cost>>;

/// Runs all subjects in turn, `rounds` times after two rounds that do not count. `settled` is asked after every call
/// and returns when the next one can start.
///
/// # Errors
/// A call fails, or `settled` does.
pub(super) fn interleave(
    subjects: &[Subject],
    rounds: usize,
    mut settled: impl FnMut() -> Result<()>,
) -> Result<Vec<Costs>> {
    const WARM_UP: usize = 2;
    let mut costs: Vec<Costs> =
        subjects.iter().map(|subject| vec![Vec::new(); subject.calls.len()]).collect();
    for round in 0..WARM_UP + rounds {
        // Another one starts each round, so that none always follows the same other one.
        for turn in 0..subjects.len() {
            let chosen = (round + turn) % subjects.len();
            let (Some(subject), Some(costs)) = (subjects.get(chosen), costs.get_mut(chosen)) else {
                continue;
            };
            for (call, costs) in subject.calls.iter().zip(costs) {
                let cost = call.measure().with_context(|| format!("round {round}, {}", subject.name))?;
                if round >= WARM_UP {
                    costs.push(cost);
                }
                settled()?;
            }
        }
    }
    Ok(costs)
}

/// The median of one kind of cost, in milliseconds.
pub(super) fn median(costs: &[Cost], kind: impl Fn(&Cost) -> Duration) -> f64 {
    let mut sorted: Vec<Duration> = costs.iter().map(kind).collect();
    sorted.sort_unstable();
    let middle = sorted.len() / 2;
    let at = |index: usize| sorted.get(index).copied().unwrap_or_default().as_secs_f64() * 1000.0;
    if sorted.len().is_multiple_of(2) {
        f64::midpoint(at(middle.saturating_sub(1)), at(middle))
    } else {
        at(middle)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_median_is_in_the_middle() {
        let costs = |walls: &[u64]| -> Vec<Cost> {
            let cost = |wall: &u64| Cost { wall: Duration::from_millis(*wall), cpu: Duration::ZERO };
            walls.iter().map(cost).collect()
        };
        for (walls, expected) in
            [(vec![5], 5.0), (vec![9, 1, 5], 5.0), (vec![4, 2, 8, 1], 3.0), (vec![2, 4], 3.0), (vec![], 0.0)]
        {
            let found = median(&costs(&walls), |cost| cost.wall);
            assert!((found - expected).abs() < 1e-9, "{walls:?}: {found}");
        }
    }

    #[test]
    fn every_subject_runs_in_every_round() {
        let subject = |name, calls| Subject { name, calls: vec![Call::new("/bin/true"); calls] };
        let mut asked = 0;
        let settled = || {
            asked += 1;
            Ok(())
        };
        let costs = interleave(&[subject("one", 1), subject("two", 2)], 3, settled).unwrap();
        assert_eq!(
            costs.iter().map(|costs| costs.iter().map(Vec::len).collect::<Vec<_>>()).collect::<Vec<_>>(),
            [vec![3], vec![3, 3]]
        );
        assert_eq!(asked, 5 * 3);
    }
}
