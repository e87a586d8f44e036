//! What the shaders become on GCN4: `cargo xtask gcn4 --write-figures` writes them.

use std::collections::BTreeMap;
use std::sync::LazyLock;

use serde_json::Value;

/// One variant's figures.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) struct Figure {
    /// Waves that a SIMD holds.
    pub(super) waves: f64,
    /// The main loop, where there is one whose unit of work is told.
    pub(super) main: Option<Loop>,
}

/// One trip of a main loop.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) struct Loop {
    /// Weights that a lane goes through, or multiply-adds that it makes, as `unit` says.
    pub(super) units: f64,
    pub(super) unit: Unit,
    /// Multiply-adds among the instructions.
    pub(super) macs: f64,
    /// Clocks of the vector unit, or of the shared memory where that takes longer.
    pub(super) vector_clocks: f64,
    /// Clocks in which a wave issues all its instructions, one after the other.
    pub(super) issue_clocks: f64,
}

/// What the units of a loop are.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Unit {
    Weight,
    MultiplyAdd,
}

/// The figures by name of the row.
pub(super) struct Figures {
    rows: BTreeMap<String, Figure>,
    pub(super) driver: String,
}

/// The committed figures.
pub(super) fn committed() -> &'static Figures {
    static FIGURES: LazyLock<Figures> = LazyLock::new(|| Figures::read(include_str!("../../gcn4-figures.json")));
    &FIGURES
}

impl Figures {
    /// Reads the file's text. What cannot be read is left out: whoever asks for it is told so.
    pub(super) fn read(text: &str) -> Figures {
        let file: Value = serde_json::from_str(text).unwrap_or_default();
        let rows = file["rows"].as_array().map_or(&[][..], Vec::as_slice);
        let rows = rows.iter().filter_map(|row| Some((row["name"].as_str()?.to_owned(), figure(row)?))).collect();
        Figures { rows, driver: file["driver"].as_str().unwrap_or_default().to_owned() }
    }

    /// The figures of a shader with these specialization constants; of rows that name some, the one that names most of them as they are.
    pub(super) fn find(&self, shader: &str, constants: &[(u32, u32)]) -> Option<&Figure> {
        if let Some(figure) = self.rows.get(shader) {
            return Some(figure);
        }
        let alike = |name: &str| {
            let pairs = name.split(',').filter_map(|pair| pair.split_once('='));
            pairs
                .filter(|(id, value)| constants.iter().any(|(i, v)| i.to_string() == *id && v.to_string() == *value))
                .count()
        };
        let prefix = format!("{shader}@");
        let rows = self.rows.range(prefix.clone()..).take_while(|(name, _)| name.starts_with(&prefix));
        rows.max_by_key(|(name, _)| alike(&name[prefix.len()..])).map(|(_, figure)| figure)
    }
}

fn figure(row: &Value) -> Option<Figure> {
    let waves = row["waves"].as_f64().filter(|waves| *waves >= 1.0)?;
    Some(Figure { waves, main: main_loop(row) })
}

/// Part of a loop's instructions that multiply and add, from which on they count as its work where the source declares none.
const MULTIPLIES: f64 = 0.2;

fn main_loop(row: &Value) -> Option<Loop> {
    let counts = row["loop"].as_array()?;
    let count = |i: usize| counts.get(i).and_then(Value::as_f64);
    let (all, macs) = (count(0)?, count(1)?);
    let (unit, units) = match (row["unit"].as_str(), row["units_per_trip"].as_f64()) {
        (Some("weight"), Some(units)) => (Unit::Weight, units),
        (Some("mac"), Some(units)) => (Unit::MultiplyAdd, units),
        _ if macs >= MULTIPLIES * all => (Unit::MultiplyAdd, macs),
        _ => return None,
    };
    let vector = row["vector_clocks"].as_f64().filter(|clocks| *clocks > 0.0 && units > 0.0)?;
    let lds = row["lds_share"].as_f64().unwrap_or(0.0);
    Some(Loop { units, unit, macs, vector_clocks: vector * lds.max(1.0), issue_clocks: all * 4.0 })
}

impl Loop {
    /// Multiply-adds that a lane makes in a trip, of a kernel that takes `columns` columns at once. Where a source declares the units of a whole block and a
    /// trip takes a part of one, the instructions tell: halves, quarters and so on.
    pub(super) fn work(&self, columns: f64) -> f64 {
        match self.unit {
            Unit::MultiplyAdd => self.units,
            Unit::Weight => {
                let whole = self.units * columns;
                // Formats that multiply and add in other instructions than v_mac show fewer of them.
                if columns < 8.0 || self.macs <= 0.0 {
                    return whole;
                }
                let part = (self.macs / whole).log2().round().clamp(-6.0, 0.0);
                whole * part.exp2()
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const FILE: &str = r#"{"driver": "d", "rows": [
        {"name": "a", "waves": 4, "unit": "weight", "units_per_trip": 96, "loop": [1893,1536,51,51,164,73,0,0,18], "vector_clocks": 6552},
        {"name": "e", "waves": 4, "loop": [362,256,16,2,43,34,2,0,9], "vector_clocks": 1096},
        {"name": "f", "waves": 4, "loop": [277,9,15,75,158,4,0,9,7], "vector_clocks": 528},
        {"name": "b@0=64", "waves": 2},
        {"name": "b@0=256,1=4", "waves": 8},
        {"name": "broken", "waves": "many"}, 7
    ]}"#;

    #[test]
    fn a_trip_of_half_a_block_is_recognized_by_its_multiply_adds() {
        let figures = Figures::read(FILE);
        let main = figures.find("a", &[]).and_then(|figure| figure.main).expect("a loop");
        assert_eq!(main.work(32.0), 1536.0);
        assert_eq!(main.issue_clocks, 1893.0 * 4.0);
    }

    #[test]
    fn where_no_unit_is_declared_a_loop_of_multiply_adds_is_its_own_unit() {
        let figures = Figures::read(FILE);
        let units = |name: &str| figures.find(name, &[]).and_then(|figure| figure.main).map(|main| main.work(1.0));
        assert_eq!((units("e"), units("f")), (Some(256.0), None));
    }

    #[test]
    fn the_row_whose_constants_are_those_of_the_dispatch_counts() {
        let figures = Figures::read(FILE);
        let waves = |constants: &[(u32, u32)]| figures.find("b", constants).map(|figure| figure.waves);
        assert_eq!(waves(&[(0, 64)]), Some(2.0));
        assert_eq!(waves(&[(0, 256), (1, 4), (2, 9)]), Some(8.0));
        assert!(figures.find("c", &[]).is_none() && figures.find("broken", &[]).is_none());
    }

    #[test]
    fn a_file_that_is_none_has_no_figures() {
        for text in ["", "[]", "{\"rows\": 1}", "{\"rows\": [{\"name\": 1}]}"] {
            assert!(Figures::read(text).find("a", &[]).is_none(), "{text}");
        }
    }

    #[test]
    fn the_committed_figures_have_a_loop_for_products_of_one_column_and_of_many() {
        for shader in ["matmul.q4_0.2x1", "matmul.q4_k.2x1"] {
            let main = committed().find(shader, &[]).and_then(|figure| figure.main);
            assert!(main.is_some_and(|main| main.vector_clocks / 4.0 / main.work(1.0) < 4.0), "{shader}");
        }
    }
}
