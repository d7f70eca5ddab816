//! One figure, and how it is shown.

use serde::Serialize;

use crate::table;

/// One figure.
#[derive(Debug, Serialize)]
pub(super) struct Row {
    /// What was measured against what.
    pub(super) case: String,
    /// The figure.
    pub(super) value: f64,
    /// Its unit.
    pub(super) unit: &'static str,
    /// The figure of what it is compared with.
    pub(super) baseline: Option<f64>,
    /// `value` divided by `baseline`.
    pub(super) ratio: Option<f64>,
    /// What was aimed at.
    pub(super) aim: Option<String>,
    /// Whether that was reached.
    pub(super) held: Option<bool>,
}

/// A bound that a figure is to keep.
#[derive(Clone, Copy, Debug)]
pub(super) enum Aim {
    /// Of the ratio.
    Ratio(f64),
    /// Of the value itself.
    Value(f64),
    /// Of the value itself, which may reach it: a number of things.
    Count(f64),
}

impl Row {
    /// A figure, compared with another one of the same unit.
    pub(super) fn new(
        case: impl Into<String>,
        value: f64,
        unit: &'static str,
        baseline: Option<f64>,
        aim: Option<Aim>,
    ) -> Self {
        let ratio = baseline.map(|baseline| value / baseline);
        let held = aim.and_then(|aim| match aim {
            Aim::Ratio(bound) => ratio.map(|ratio| ratio < bound),
            Aim::Value(bound) => Some(value < bound),
            Aim::Count(bound) => Some(value <= bound),
        });
        let aim = aim.map(|aim| match aim {
            Aim::Ratio(bound) => format!("ratio < {bound}"),
            Aim::Value(bound) => format!("< {bound} {unit}"),
            Aim::Count(bound) => format!("<= {bound} {unit}"),
        });
        Self { case: case.into(), value, unit, baseline, ratio, aim, held }
    }
}

/// The rows as lines of a table.
pub(super) fn table(rows: &[Row]) -> Vec<String> {
    let text = |number: f64| match number {
        1000.0.. => format!("{number:.0}"),
        _ => format!("{number:.2}"),
    };
    let cells = |row: &Row| {
        let held = match row.held {
            Some(true) => "yes",
            Some(false) => "NO",
            None => "",
        };
        vec![
            row.case.clone(),
            text(row.value),
            row.baseline.map(text).unwrap_or_default(),
            row.unit.to_owned(),
            row.ratio.map(text).unwrap_or_default(),
            row.aim.clone().unwrap_or_default(),
            held.to_owned(),
        ]
    };
    let rows: Vec<_> = rows.iter().map(cells).collect();
    table::lines(&["case", "value", "baseline", "unit", "ratio", "aim", "held"], &rows)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_aim_is_held_only_within_its_bound() {
        for (value, baseline, aim, held) in [
            (1.2, Some(1.0), Some(Aim::Ratio(1.3)), Some(true)),
            (1.3, Some(1.0), Some(Aim::Ratio(1.3)), Some(false)),
            (0.29, Some(0.1), Some(Aim::Value(0.3)), Some(true)),
            (0.3, None, Some(Aim::Value(0.3)), Some(false)),
            (3.0, None, Some(Aim::Count(3.0)), Some(true)),
            (4.0, None, Some(Aim::Count(3.0)), Some(false)),
            (1.2, None, Some(Aim::Ratio(1.3)), None),
            (1.2, Some(1.0), None, None),
        ] {
            assert_eq!(
                Row::new("case", value, "ms", baseline, aim).held,
                held,
                "{value} {baseline:?} {aim:?}"
            );
        }
    }
}
