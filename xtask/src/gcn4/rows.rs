//! The rows of the report: which variant with which specialization constants, and what its unit of work is.

use xtask_shaders::variants::{Note, Variant};

use super::budget;

/// One row.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct Row {
    /// The variant's name, followed by `@0=256,1=4` where the source asks for these specialization constants.
    pub(super) name: String,
    /// The name of the variant, whose SPIR-V it is.
    pub(super) variant: String,
    /// Identity and value of the specialization constants that are not left at their defaults.
    pub(super) constants: Vec<(u32, u32)>,
    /// The unit of work.
    pub(super) unit: Option<Unit>,
    /// The limits that the source itself sets: keys of the budget and their values.
    pub(super) goals: Vec<(String, f64)>,
}

/// What a shader works on.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Unit {
    /// What one unit is called.
    pub(super) name: String,
    /// How many of them a lane does in one trip of the main loop.
    pub(super) per_trip: u64,
}

/// The rows of a variant: one, or one for each `gcn4 spec` note that applies to it.
pub(super) fn of(variant: &Variant) -> Result<Vec<Row>, String> {
    let mut unit = None;
    let mut goals: Vec<(String, f64)> = Vec::new();
    let mut specializations = Vec::new();
    for note in &variant.gcn4 {
        let failed = |error: String| format!("{}:{}: {error}", variant.source, note.line);
        let (keyword, rest) = keyword(note);
        let (rest, applies) = condition(rest, variant).map_err(failed)?;
        match keyword {
            "unit" => {
                let read = read_unit(rest, variant).map_err(failed)?;
                // The first that applies: a condition may be followed by the rule for the others.
                if applies && unit.is_none() {
                    unit = read;
                }
            }
            "spec" => {
                let constants = constants(rest).map_err(failed)?;
                if applies {
                    specializations.push(constants);
                }
            }
            "goal" => {
                let read = read_goals(rest).map_err(failed)?;
                let new = read.into_iter().filter(|(key, _)| applies && goals.iter().all(|(known, _)| known != key));
                let new: Vec<(String, f64)> = new.collect();
                goals.extend(new);
            }
            _ => return Err(failed(format!("//@ gcn4 knows unit, spec and goal, not {keyword}"))),
        }
    }
    let row = |name: String, constants: Vec<(u32, u32)>| Row {
        name,
        variant: variant.name.clone(),
        constants,
        unit: unit.clone(),
        goals: goals.clone(),
    };
    if specializations.is_empty() {
        return Ok(vec![row(variant.name.clone(), Vec::new())]);
    }
    Ok(specializations
        .into_iter()
        .map(|constants| {
            let shown: Vec<String> = constants.iter().map(|(id, value)| format!("{id}={value}")).collect();
            row(format!("{}@{}", variant.name, shown.join(",")), constants)
        })
        .collect())
}

fn keyword(note: &Note) -> (&str, &str) {
    note.text.split_once(char::is_whitespace).unwrap_or((&note.text, ""))
}

/// Splits `.. when NAME=VALUE|VALUE NAME=VALUE` and says whether all of the pairs hold for a variant.
fn condition<'a>(text: &'a str, variant: &Variant) -> Result<(&'a str, bool), String> {
    let Some((before, pairs)) = text.split_once(" when ") else { return Ok((text.trim(), true)) };
    let mut applies = true;
    for pair in pairs.split_whitespace() {
        let (name, values) = pair.split_once('=').ok_or_else(|| format!("{pair} is not NAME=VALUE"))?;
        let value = variant.define(name).ok_or_else(|| format!("{name} is in no axis"))?;
        applies &= values.split('|').any(|wanted| wanted == value);
    }
    Ok((before.trim(), applies))
}

/// Reads `NAME FACTOR*FACTOR..`; nothing where a factor is zero for this variant.
fn read_unit(text: &str, variant: &Variant) -> Result<Option<Unit>, String> {
    let (name, expression) = text.split_once(char::is_whitespace).ok_or("unit needs a name and a product")?;
    let per_trip = product(expression, variant)?;
    Ok((per_trip > 0).then(|| Unit { name: name.to_owned(), per_trip }))
}

/// A product of whole numbers and of macros that are whole numbers.
fn product(expression: &str, variant: &Variant) -> Result<u64, String> {
    let mut product: u64 = 1;
    for factor in expression.split('*').map(str::trim) {
        let text = variant.define(factor).unwrap_or(factor);
        let value: u64 = text.parse().map_err(|_| {
            let what =
                if text == factor { "neither a whole number nor a macro of an axis" } else { "not a whole number" };
            format!("{factor} is {what}")
        })?;
        product = product.checked_mul(value).ok_or_else(|| format!("{expression} is too large"))?;
    }
    Ok(product)
}

/// Reads `KEY=VALUE..`, keys of the budget.
fn read_goals(text: &str) -> Result<Vec<(String, f64)>, String> {
    let goals = text.split_whitespace().map(|pair| {
        let (key, value) = pair.split_once('=').ok_or_else(|| format!("{pair} is not KEY=VALUE"))?;
        let value: f64 = value.parse().map_err(|_| format!("{value} is no number"))?;
        if budget::is_limit(key) {
            Ok((key.to_owned(), value))
        } else {
            Err(format!("{key} is no limit of the budget"))
        }
    });
    let goals: Vec<(String, f64)> = goals.collect::<Result<_, _>>()?;
    if goals.is_empty() { Err("goal needs KEY=VALUE".into()) } else { Ok(goals) }
}

/// Reads `ID=VALUE..`.
fn constants(text: &str) -> Result<Vec<(u32, u32)>, String> {
    let pair = |pair: &str| -> Option<(u32, u32)> {
        let (id, value) = pair.split_once('=')?;
        Some((id.parse().ok()?, value.parse().ok()?))
    };
    let pairs = text.split_whitespace().map(|text| pair(text).ok_or_else(|| format!("{text} is not ID=VALUE")));
    let pairs: Vec<(u32, u32)> = pairs.collect::<Result<_, _>>()?;
    if pairs.is_empty() { Err("spec needs ID=VALUE".into()) } else { Ok(pairs) }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn variant(notes: &[&str]) -> Variant {
        let defines = [("WEIGHT", "Q4_0"), ("R", "3"), ("C", "32")];
        Variant {
            name: "matmul.q4_0.3x32".into(),
            source: "matmul.comp".into(),
            defines: defines.map(|(name, value)| (name.to_owned(), value.to_owned())).into(),
            text: String::new(),
            lines: Vec::new(),
            gcn4: notes.iter().map(|&text| Note { line: 2, text: text.into() }).collect(),
        }
    }

    fn unit(notes: &[&str]) -> Result<Option<(String, u64)>, String> {
        let rows = of(&variant(notes))?;
        Ok(rows[0].unit.clone().map(|unit| (unit.name, unit.per_trip)))
    }

    #[test]
    fn a_unit_is_a_product_of_numbers_and_macros() {
        assert_eq!(unit(&[]), Ok(None));
        assert_eq!(unit(&["unit weight 32*R"]), Ok(Some(("weight".into(), 96))));
        assert_eq!(unit(&["unit mac R * C * 2"]), Ok(Some(("mac".into(), 192))));
        assert_eq!(
            unit(&["unit weight 32*Q"]),
            Err("matmul.comp:2: Q is neither a whole number nor a macro of an axis".into())
        );
        assert_eq!(unit(&["unit weight WEIGHT"]), Err("matmul.comp:2: WEIGHT is not a whole number".into()));
        assert!(unit(&["unit weight 4294967296*4294967296"]).is_err());
        assert_eq!(
            unit(&["units weight 1"]),
            Err("matmul.comp:2: //@ gcn4 knows unit, spec and goal, not units".into())
        );
    }

    #[test]
    fn the_first_unit_whose_condition_holds_counts() {
        let notes =
            ["unit weight 256 when WEIGHT=Q4_K|Q5_K", "unit weight 64 when WEIGHT=F16|Q4_0 R=3", "unit weight 8"];
        assert_eq!(unit(&notes), Ok(Some(("weight".into(), 64))));
        assert_eq!(unit(&["unit weight 1 when COLUMNS=3"]), Err("matmul.comp:2: COLUMNS is in no axis".into()));
    }

    #[test]
    fn goals_are_limits_of_the_budget_and_the_first_that_applies_counts() {
        let goals = |notes: &[&str]| of(&variant(notes)).map(|rows| rows[0].goals.clone());
        let notes = ["goal max_valu_per_unit=2.7 when WEIGHT=Q4_0", "goal max_valu_per_unit=4 max_vgprs=84"];
        assert_eq!(goals(&notes), Ok(vec![("max_valu_per_unit".into(), 2.7), ("max_vgprs".into(), 84.0)]));
        assert_eq!(goals(&["goal max_vgpr=84"]), Err("matmul.comp:2: max_vgpr is no limit of the budget".into()));
        assert_eq!(goals(&["goal max_vgprs=few"]), Err("matmul.comp:2: few is no number".into()));
    }

    #[test]
    fn every_specialization_is_a_row() {
        let rows = of(&variant(&["spec 0=64", "spec 0=256 1=4", "spec 0=1024 when R=1"])).unwrap();
        let names: Vec<&str> = rows.iter().map(|row| &*row.name).collect();
        assert_eq!(names, ["matmul.q4_0.3x32@0=64", "matmul.q4_0.3x32@0=256,1=4"]);
        assert_eq!(rows[1].constants, [(0, 256), (1, 4)]);
        assert_eq!(rows[1].variant, "matmul.q4_0.3x32");
        assert_eq!(of(&variant(&["spec 0"])), Err("matmul.comp:2: 0 is not ID=VALUE".into()));
    }
}
