//! Rows of a benchmark: a table for people, then one JSON line a row.
use std::collections::BTreeMap;

/// Samples of one quantity, by contender.
#[derive(Default)]
pub(crate) struct Samples(BTreeMap<(&'static str, String), Vec<f64>>);

impl Samples {
    /// Notes one sample.
    pub(crate) fn add(&mut self, row: &'static str, contender: &str, value: f64) {
        self.0.entry((row, contender.to_owned())).or_default().push(value);
    }

    /// The median of a contender's samples, if there are any.
    pub(crate) fn median(&self, row: &'static str, contender: &str) -> Option<f64> {
        let samples = self.0.get(&(row, contender.to_owned()))?;
        quantile(samples, 0.5)
    }
}

/// A quantile of samples by the nearest rank.
pub(crate) fn quantile(samples: &[f64], q: f64) -> Option<f64> {
    let mut sorted = samples.to_vec();
    sorted.sort_by(f64::total_cmp);
    let last = sorted.len().checked_sub(1)?;
    #[allow(clippy::cast_precision_loss, clippy::cast_possible_truncation, clippy::cast_sign_loss)]
    sorted.get((last as f64 * q).round() as usize).copied()
}

struct Row {
    area: &'static str,
    row: String,
    unit: &'static str,
    ours: f64,
    peer: String,
    peer_value: f64,
}

/// All rows of a run, and why some could not be measured.
#[derive(Default)]
pub(crate) struct Rows {
    rows: Vec<Row>,
    skipped: Vec<String>,
}

impl Rows {
    /// Compares medians; a row without both sides says so and is not counted.
    pub(crate) fn compare(
        &mut self,
        area: &'static str,
        row: &'static str,
        unit: &'static str,
        samples: &Samples,
        peer: &str,
    ) {
        match (samples.median(row, "weft"), samples.median(row, peer)) {
            (Some(ours), Some(peer_value)) => {
                self.rows.push(Row { area, row: row.into(), unit, ours, peer: peer.into(), peer_value });
            }
            _ => self.skip(format!("{area} / {row} against {peer}: not measured")),
        }
    }

    /// Adds a row whose values are known.
    pub(crate) fn add(
        &mut self,
        area: &'static str,
        row: String,
        unit: &'static str,
        ours: f64,
        peer: &str,
        peer_value: f64,
    ) {
        self.rows.push(Row { area, row, unit, ours, peer: peer.into(), peer_value });
    }

    /// Notes why something was not measured.
    pub(crate) fn skip(&mut self, why: String) {
        self.skipped.push(why);
    }

    /// Prints the table, and last the JSON lines.
    pub(crate) fn print(&self) {
        println!("\n{:<8} {:<34} {:>10} {:<24} {:>10}  {:>7}", "area", "row", "weft", "peer", "", "ratio");
        for row in &self.rows {
            let ratio = row.ours / row.peer_value;
            println!(
                "{:<8} {:<34} {:>10.2} {:<24} {:>10.2}  {:>6.2}x  {}",
                row.area, row.row, row.ours, row.peer, row.peer_value, ratio, row.unit
            );
        }
        for why in &self.skipped {
            println!("skipped: {why}");
        }
        println!();
        for row in &self.rows {
            let ratio = row.ours / row.peer_value;
            println!(
                "{}",
                serde_json::json!({"area": row.area, "row": row.row, "unit": row.unit, "ours": row.ours,
                    "peer": row.peer, "peer_value": row.peer_value, "ratio": ratio})
            );
        }
    }
}
