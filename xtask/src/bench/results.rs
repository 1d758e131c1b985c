//! All numbers of a run: as a table for people, as JSON for programs.

use std::fmt;

use serde_json::{Value, json};

use super::work::Work;

// Names of the measurements.
pub(crate) const WIRE: &str = "wire";
pub(crate) const SHEEPFS: &str = "sheepfs";
pub(crate) const ORIGINAL: &str = "original sheepfs";
pub(crate) const EMBEDDED_WIRE: &str = "embedded: wire";
pub(crate) const EMBEDDED: &str = "embedded: sheepfs";
pub(crate) const SHEEP_NBD: &str = "sheep-nbd";
pub(crate) const EMBEDDED_NBD: &str = "embedded: sheep-nbd";
pub(crate) const QEMU_NBD: &str = "qemu-nbd, in memory";
pub(crate) const NBDKIT: &str = "nbdkit, in memory";
pub(crate) const NBDFUSE: &str = "nbdfuse";
pub(crate) const QEMU: &str = "qemu-storage-daemon";
pub(crate) const EMPTY: &str = "empty FUSE file system";

/// Pairs of targets to compare.
const RATIOS: [(&str, &str); 14] = [
    (SHEEPFS, WIRE),
    (SHEEPFS, ORIGINAL),
    (SHEEPFS, EMPTY),
    (EMBEDDED, EMBEDDED_WIRE),
    (EMBEDDED, NBDFUSE),
    (EMBEDDED, QEMU),
    (EMBEDDED_WIRE, WIRE),
    (SHEEP_NBD, WIRE),
    (SHEEP_NBD, SHEEPFS),
    (SHEEP_NBD, QEMU_NBD),
    (EMBEDDED_NBD, EMBEDDED_WIRE),
    (EMBEDDED_NBD, EMBEDDED),
    (EMBEDDED_NBD, QEMU_NBD),
    (EMBEDDED_NBD, NBDKIT),
];

/// One measurement.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Measured {
    /// Operations per second of all jobs together.
    pub(crate) speed: f64,
    /// Microseconds of processor time per operation, where one process does
    /// all the work and no other does any.
    pub(crate) cpu: Option<f64>,
}

/// All measurements of one target at one kind of work, one for each round;
/// a job with an error has no speed.
#[derive(Debug)]
struct Series {
    work: &'static str,
    on_the_wire: &'static str,
    block: u32,
    target: &'static str,
    rounds: Vec<Result<Measured, String>>,
}

/// See the module.
#[derive(Debug, Default)]
pub(crate) struct Results {
    missing: Vec<String>,
    series: Vec<Series>,
    costs: Vec<(String, String)>,
}

impl Results {
    /// Notes something that would have been measured as well.
    pub(crate) fn missing(&mut self, what: &str) {
        eprintln!("bench: there is no {what}");
        self.missing.push(what.to_owned());
    }

    /// Adds a measurement of the next round.
    pub(crate) fn add(
        &mut self,
        work: &Work,
        target: &'static str,
        measured: anyhow::Result<Measured>,
    ) {
        let measured = measured.map_err(|error| format!("{error:#}"));
        if let Err(error) = &measured {
            eprintln!("bench: {target}: {error}");
        }
        let known = self
            .series
            .iter_mut()
            .find(|series| series.work == work.name && series.target == target);
        match known {
            Some(series) => series.rounds.push(measured),
            None => self.series.push(Series {
                work: work.name,
                on_the_wire: work.on_the_wire(),
                block: work.block,
                target,
                rounds: vec![measured],
            }),
        }
    }

    /// Adds a number that is no speed.
    pub(crate) fn cost(&mut self, what: impl Into<String>, value: impl Into<String>) {
        self.costs.push((what.into(), value.into()));
    }

    /// Measurements of our programs that failed.
    pub(crate) fn failures(&self) -> usize {
        self.series
            .iter()
            .filter(|series| [SHEEPFS, EMBEDDED, SHEEP_NBD, EMBEDDED_NBD].contains(&series.target))
            .flat_map(|series| &series.rounds)
            .filter(|measured| measured.is_err())
            .count()
    }

    fn find(&self, work: &str, target: &str) -> Option<&Series> {
        self.series
            .iter()
            .find(|series| series.work == work && series.target == target)
    }

    /// The median over the rounds of one target's speed divided by another's, in
    /// bytes where the wire did something else.
    fn ratio(&self, work: &Series, of: &str, to: &str) -> Option<f64> {
        let of = self.find(work.work, of)?;
        let compared = if [WIRE, EMBEDDED_WIRE].contains(&to) {
            of.on_the_wire
        } else {
            work.work
        };
        let to = self.find(compared, to)?;
        let blocks = f64::from(of.block) / f64::from(to.block);
        let ratios = of.rounds.iter().zip(&to.rounds);
        median(
            ratios
                .filter_map(|(of, to)| {
                    Some(of.as_ref().ok()?.speed / to.as_ref().ok()?.speed * blocks)
                })
                .collect(),
        )
    }

    fn work(&self) -> Vec<&Series> {
        let mut seen: Vec<&Series> = Vec::new();
        for series in &self.series {
            if seen.iter().all(|known| known.work != series.work) {
                seen.push(series);
            }
        }
        seen
    }

    /// Everything that was measured.
    pub(crate) fn json(&self) -> Value {
        let series: Vec<_> = self
            .series
            .iter()
            .map(|series| {
                let rounds: Vec<_> = series
                    .rounds
                    .iter()
                    .map(|measured| match measured {
                        Ok(Measured { speed, cpu }) => json!({"per_second": speed, "cpu_us": cpu}),
                        Err(error) => json!({"error": error}),
                    })
                    .collect();
                json!({
                    "work": series.work,
                    "block": series.block,
                    "contestant": series.target,
                    "rounds": rounds,
                })
            })
            .collect();
        let ratios: Vec<_> = self
            .work()
            .into_iter()
            .flat_map(|work| RATIOS.map(|(of, to)| (work, of, to)))
            .filter_map(|(work, of, to)| {
                let ratio = self.ratio(work, of, to)?;
                Some(json!({"work": work.work, "of": of, "to": to, "median": ratio}))
            })
            .collect();
        let costs: serde_json::Map<_, _> = self
            .costs
            .iter()
            .map(|(what, value)| (what.clone(), json!(value)))
            .collect();
        json!({"missing": self.missing, "series": series, "ratios": ratios, "costs": costs})
    }
}

fn median(mut values: Vec<f64>) -> Option<f64> {
    values.sort_by(f64::total_cmp);
    values.get(values.len() / 2).copied()
}

impl Series {
    fn speed(&self) -> Option<f64> {
        median(self.measured(|measured| Some(measured.speed)))
    }

    fn cpu(&self) -> Option<f64> {
        median(self.measured(|measured| measured.cpu))
    }

    fn measured(&self, value: impl Fn(&Measured) -> Option<f64>) -> Vec<f64> {
        self.rounds.iter().flatten().filter_map(value).collect()
    }

    fn errors(&self) -> usize {
        self.rounds.iter().filter(|round| round.is_err()).count()
    }
}

impl fmt::Display for Results {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for work in self.work() {
            writeln!(f, "\n{}", work.work)?;
            for series in self.series.iter().filter(|some| some.work == work.work) {
                write!(f, "  {:<28}", series.target)?;
                match series.speed() {
                    Some(speed) => write!(f, "{speed:>10.0}/s")?,
                    None => write!(f, "{:>12}", "-")?,
                }
                if let Some(cpu) = series.cpu() {
                    write!(f, "  {cpu:>7.1} us CPU each")?;
                }
                match series.errors() {
                    0 => writeln!(f)?,
                    errors => writeln!(f, "  {errors} rounds with errors")?,
                }
            }
            for (of, to) in RATIOS {
                if let Some(ratio) = self.ratio(work, of, to) {
                    writeln!(f, "  {:<40}{ratio:>6.2}", format!("{of} / {to}"))?;
                }
            }
        }
        if !self.costs.is_empty() {
            writeln!(f, "\nCosts of sheepfs")?;
        }
        for (what, value) in &self.costs {
            writeln!(f, "  {what:<56}{value:>14}")?;
        }
        for missing in &self.missing {
            writeln!(f, "\nNot compared, there is no {missing}")?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::super::work::ALL;
    use super::*;

    fn speed(speed: f64) -> anyhow::Result<Measured> {
        Ok(Measured { speed, cpu: None })
    }

    #[test]
    fn bench_ratio_is_median_over_rounds() {
        let mut results = Results::default();
        for (ours, wire) in [(90.0, 100.0), (5.0, 10.0), (800.0, 1000.0)] {
            results.add(&ALL[0], SHEEPFS, speed(ours));
            results.add(&ALL[0], WIRE, speed(wire));
        }
        let text = results.to_string();
        assert!(
            text.contains("sheepfs / wire                            0.80"),
            "{text}"
        );
    }

    #[test]
    fn bench_round_with_error_is_counted_without_speed() {
        let mut results = Results::default();
        results.add(&ALL[0], SHEEPFS, speed(90.0));
        results.add(&ALL[0], SHEEPFS, Err(anyhow::anyhow!("EIO")));
        assert_eq!(results.failures(), 1);
        assert!(results.to_string().contains("1 rounds with errors"));
    }

    #[test]
    fn bench_compares_page_cache_with_wire_bytes() {
        let mut results = Results::default();
        let cached = ALL
            .iter()
            .find(|work| work.name != work.on_the_wire() && work.write);
        let cached = cached.expect("ALL has a cached write");
        let wire = ALL.iter().find(|work| work.name == cached.on_the_wire());
        results.add(cached, SHEEPFS, speed(256.0));
        results.add(
            wire.expect("the wire measures this work by another one"),
            WIRE,
            speed(2.0),
        );
        assert!(
            results
                .to_string()
                .contains("sheepfs / wire                            0.50")
        );
    }
}
