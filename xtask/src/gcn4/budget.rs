//! The budgets: limits of every row that a change may not exceed, and the rules that hold for all.

use std::collections::BTreeMap;

use serde_json::{Value, json};

use super::figures::Figures;

/// No device has less shared memory, and some no more.
const MAX_LDS: u32 = 32 * 1024;

/// The most code of what runs between the large kernels: it shall not push them out of the instruction cache, which is of 32 KiB
/// for up to four compute units.
const MAX_SMALL_CODE: u32 = 8 * 1024;

/// What the names of such shaders contain.
const SMALL: [&str; 3] = ["norm", "softmax", "reduce"];

/// One limit of a row.
struct Limit {
    /// Its key in the file.
    key: &'static str,
    /// What the row has, if it makes sense for it.
    figure: fn(&Figures) -> Option<f64>,
    /// Whether more is better.
    least: bool,
}

const LIMITS: [Limit; 7] = [
    Limit { key: "max_vgprs", figure: |row| Some(row.vgprs.into()), least: false },
    Limit { key: "max_lds", figure: |row| (row.lds > 0).then(|| row.lds.into()), least: false },
    Limit { key: "max_code", figure: |row| Some(row.code.into()), least: false },
    Limit { key: "min_waves", figure: |row| Some(row.waves.min(row.driver_waves).into()), least: true },
    Limit { key: "max_valu_per_unit", figure: Figures::valu_per_unit, least: false },
    Limit { key: "min_mac_share", figure: Figures::mac_share, least: true },
    Limit {
        key: "max_lds_share",
        figure: |row| row.lds_share().filter(|_| row.main.is_some_and(|main| main.mix.lds > 0 && main.mix.mac > 0)),
        least: false,
    },
];

impl Limit {
    /// The figure as a limit: three decimals, rounded to the side that allows it.
    fn of(&self, figures: &Figures) -> Option<f64> {
        let value = (self.figure)(figures)? * 1000.0;
        Some(if self.least { value.floor() } else { value.ceil() } / 1000.0)
    }

    /// What is wrong with a row under this limit.
    fn exceeded(&self, figures: &Figures, limit: f64) -> Option<String> {
        // A figure that no longer makes sense, as that of a loop that was unrolled away, is for a person to look at.
        let Some(now) = self.of(figures) else { return Some(format!("no figure for {} any more", self.key)) };
        let wrong = if self.least { now < limit } else { now > limit };
        wrong.then(|| format!("{} is {limit}, and it has {now}", self.key))
    }
}

/// Whether a limit has this key.
pub(super) fn is_limit(key: &str) -> bool {
    LIMITS.iter().any(|limit| limit.key == key)
}

/// The budget file.
#[derive(Debug, Default, PartialEq)]
pub(super) struct Budget {
    /// The driver whose figures these are.
    pub(super) driver: String,
    /// The limits of each row.
    rows: BTreeMap<String, BTreeMap<String, f64>>,
}

impl Budget {
    /// The budget in which these rows just fit.
    pub(super) fn of(driver: &str, all: &[Figures]) -> Self {
        let limits = |figures: &Figures| {
            // Where the loop is for other things, the share of multiplications says nothing.
            let tells = |key: &str, value: f64| key != "min_mac_share" || value >= 0.5;
            let limits = LIMITS.iter().filter_map(|limit| Some((limit.key.to_owned(), limit.of(figures)?)));
            limits.filter(|(key, value)| tells(key, *value)).collect()
        };
        let rows = all.iter().map(|figures| (figures.name.clone(), limits(figures))).collect();
        Self { driver: driver.to_owned(), rows }
    }

    /// Reads the file's text.
    pub(super) fn read(text: &str) -> Result<Self, String> {
        let value: Value = serde_json::from_str(text).map_err(|error| error.to_string())?;
        let driver = value["driver"].as_str().ok_or("it names no driver")?.to_owned();
        let rows = value["rows"].as_object().ok_or("it has no rows")?.iter().map(|(name, limits)| {
            let limits = limits.as_object().ok_or_else(|| format!("{name} has no limits"))?;
            let limits = limits.iter().map(|(key, limit)| {
                let limit = limit.as_f64().filter(|_| is_limit(key));
                Ok((key.clone(), limit.ok_or_else(|| format!("{name}: {key} is no limit"))?))
            });
            Ok((name.clone(), limits.collect::<Result<_, String>>()?))
        });
        Ok(Self { driver, rows: rows.collect::<Result<_, String>>()? })
    }

    /// The file's text, one line for each row.
    pub(super) fn text(&self) -> String {
        let rows: Vec<String> = self
            .rows
            .iter()
            .map(|(name, limits)| {
                // In the order of the table, not of the alphabet.
                let limits: Vec<String> = LIMITS
                    .iter()
                    .filter_map(|limit| Some(format!("\"{}\": {}", limit.key, limits.get(limit.key)?)))
                    .collect();
                format!("    {}: {{{}}}", json!(name), limits.join(", "))
            })
            .collect();
        format!("{{\n  \"driver\": {},\n  \"rows\": {{\n{}\n  }}\n}}\n", json!(self.driver), rows.join(",\n"))
    }

    /// What exceeds its limits or has none. `complete`: the rows are all that there are, so that a limit without a row is
    /// wrong, too.
    pub(super) fn check(&self, all: &[Figures], complete: bool) -> Vec<String> {
        let mut wrong = Vec::new();
        for figures in all {
            let Some(limits) = self.rows.get(&figures.name) else {
                wrong.push(format!("{} has no budget", figures.name));
                continue;
            };
            for limit in &LIMITS {
                let exceeded = limits.get(limit.key).and_then(|&value| limit.exceeded(figures, value));
                wrong.extend(exceeded.map(|what| format!("{}: {what}", figures.name)));
            }
        }
        if complete {
            let gone = self.rows.keys().filter(|name| all.iter().all(|figures| figures.name != **name));
            wrong.extend(gone.map(|name| format!("{name} has a budget, but there is no such row")));
        }
        wrong
    }
}

/// What misses the goals that the sources set, whatever the budget says.
pub(super) fn goals(all: &[Figures]) -> Vec<String> {
    let missed = all.iter().flat_map(|figures| {
        figures.goals.iter().filter_map(move |(key, value)| {
            let limit = LIMITS.iter().find(|limit| limit.key == key)?;
            let name = &figures.name;
            let Some(now) = (limit.figure)(figures) else {
                // No shared memory keeps within every limit on it; a loop or a unit that is not found meets no goal.
                return (!key.starts_with("max_lds")).then(|| format!("{name}: the goal {key} has no figure"));
            };
            let wrong = if limit.least { now < *value } else { now > *value };
            wrong.then(|| format!("{name}: the goal {key} is {value}, and it has {now:.4}"))
        })
    });
    missed.collect()
}

/// What breaks the rules that hold for every row, whatever its budget says.
pub(super) fn rules(all: &[Figures]) -> Vec<String> {
    let mut wrong = Vec::new();
    for Figures { name, spills, scratch, lds, code, .. } in all {
        if *spills > 0 {
            wrong.push(format!("{name}: {spills} registers are spilled; none may be"));
        }
        if *scratch > 0 {
            wrong.push(format!(
                "{name}: {scratch} bytes of scratch: an array is indexed at run time or registers are spilled"
            ));
        }
        if *lds > MAX_LDS {
            wrong.push(format!("{name}: {lds} bytes of shared memory; some devices have no more than {MAX_LDS}"));
        }
        let stem = name.split('.').next().unwrap_or_default();
        if SMALL.iter().any(|part| stem.contains(part)) && *code > MAX_SMALL_CODE {
            wrong.push(format!(
                "{name}: {code} bytes of code; norms, softmax and reductions have at most {MAX_SMALL_CODE}"
            ));
        }
    }
    wrong
}

#[cfg(test)]
mod tests {
    use super::super::figures::tests::example;
    use super::*;

    #[test]
    fn a_budget_is_kept_by_the_figures_it_was_made_of_and_is_read_back() {
        let budget = Budget::of("Mesa 1", &[example()]);
        assert_eq!(Budget::read(&budget.text()).as_ref(), Ok(&budget));
        assert_eq!(budget.check(&[example()], true), Vec::<String>::new());
        let limits = &budget.rows["matvec.q4_0"];
        assert_eq!((limits["max_valu_per_unit"], limits["min_mac_share"], limits["min_waves"]), (2.688, 0.6, 7.0));
    }

    #[test]
    fn what_exceeds_a_limit_is_named_with_both_figures() {
        let budget = Budget::of("Mesa 1", &[example()]);
        let mut worse = example();
        worse.vgprs = 29;
        worse.driver_waves = 6;
        let expected = ["matvec.q4_0: max_vgprs is 28, and it has 29", "matvec.q4_0: min_waves is 7, and it has 6"];
        assert_eq!(budget.check(&[worse], true), expected);
        let mut unrolled = example();
        unrolled.main = None;
        assert!(
            budget.check(&[unrolled], true).contains(&"matvec.q4_0: no figure for max_valu_per_unit any more".into())
        );
    }

    #[test]
    fn a_goal_of_the_source_holds_whatever_the_budget_says() {
        let with = |key: &str, value| Figures { goals: vec![(key.to_owned(), value)], ..example() };
        assert_eq!(
            goals(&[with("max_valu_per_unit", 2.6875), with("min_waves", 7.0), example()]),
            Vec::<String>::new()
        );
        let missed = ["matvec.q4_0: the goal max_valu_per_unit is 2.6, and it has 2.6875"];
        assert_eq!(goals(&[with("max_valu_per_unit", 2.6)]), missed);
        assert_eq!(goals(&[with("min_waves", 8.0)]).len(), 1);
        let unknown = Figures { main: None, lds: 0, ..with("min_mac_share", 0.1) };
        assert_eq!(goals(std::slice::from_ref(&unknown)), ["matvec.q4_0: the goal min_mac_share has no figure"]);
        let none = Figures { goals: vec![("max_lds".into(), 0.0)], ..unknown };
        assert_eq!(goals(&[none]), Vec::<String>::new());
    }

    #[test]
    fn rows_and_limits_that_lack_each_other_are_named() {
        let budget = Budget::of("Mesa 1", &[example()]);
        let mut other = example();
        other.name = "matvec.q8_0".into();
        let missing = "matvec.q8_0 has no budget".to_owned();
        let gone = "matvec.q4_0 has a budget, but there is no such row".to_owned();
        assert_eq!(budget.check(std::slice::from_ref(&other), false), std::slice::from_ref(&missing));
        assert_eq!(budget.check(&[other], true), [missing, gone]);
        let misspelt = "{\"driver\": \"\", \"rows\": {\"a\": {\"max_vgpr\": 3}}}";
        assert_eq!(Budget::read(misspelt), Err("a: max_vgpr is no limit".into()));
    }

    #[test]
    fn spills_scratch_large_shared_memory_and_long_small_shaders_break_the_rules() {
        assert_eq!(rules(&[example()]), Vec::<String>::new());
        let bad = Figures { name: "rms_norm.f32".into(), spills: 1, scratch: 16, lds: 32769, code: 8193, ..example() };
        assert_eq!(rules(&[bad]).len(), 4);
        let long = Figures { name: "matmul.f32".into(), code: 20_000, ..example() };
        assert_eq!(rules(&[long]), Vec::<String>::new());
    }
}
