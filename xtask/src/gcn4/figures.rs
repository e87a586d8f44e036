//! The figures of a row: what the driver says and what the main loop is made of.

use serde_json::{Value, json};

use super::assembly::{self, Loop};
use super::null_device::Compiled;
use super::rows::{Row, Unit};

/// RADV gives Polaris at most this many waves per SIMD.
const MAX_WAVES: u32 = 8;

/// Waves per SIMD for up to so many VGPRs.
const WAVES: [(u32, u32); 10] =
    [(24, 10), (28, 9), (32, 8), (36, 7), (40, 6), (48, 5), (64, 4), (84, 3), (128, 2), (256, 1)];

/// One row's figures.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct Figures {
    /// The row's name.
    pub(super) name: String,
    /// Vector registers of a lane.
    pub(super) vgprs: u32,
    /// Scalar registers of a wave.
    pub(super) sgprs: u32,
    /// Vector and scalar registers that did not fit.
    pub(super) spills: u32,
    /// Shared memory of a workgroup, bytes.
    pub(super) lds: u32,
    /// Memory of a wave for what is indexed at run time or spilled, bytes.
    pub(super) scratch: u32,
    /// Code, bytes.
    pub(super) code: u32,
    /// Waves per SIMD by the vector registers alone, by the table of GCN4, capped as RADV does.
    pub(super) waves: u32,
    /// Waves per SIMD as the driver says: scalar registers and shared memory count, too.
    pub(super) driver_waves: u32,
    /// The unit of work.
    pub(super) unit: Option<Unit>,
    /// The main loop, if there is a loop.
    pub(super) main: Option<Loop>,
    /// The limits that the source itself sets.
    pub(super) goals: Vec<(String, f64)>,
}

impl Figures {
    /// The figures of what came out of the compiler. Fails if the driver does not tell them.
    pub(super) fn of(row: &Row, compiled: &Compiled) -> Result<Self, String> {
        let figure = |name: &str| -> Result<u32, String> {
            let value = compiled.statistics.get(name);
            value.map(|&value| value as u32).ok_or_else(|| format!("{}: the driver tells no {name:?}", row.name))
        };
        if compiled.assembly.is_empty() {
            return Err(format!("{}: the driver shows no assembly", row.name));
        }
        let vgprs = figure("VGPRs")?;
        Ok(Self {
            name: row.name.clone(),
            vgprs,
            sgprs: figure("SGPRs")?,
            spills: figure("Spilled VGPRs")? + figure("Spilled SGPRs")?,
            lds: figure("LDS size")?,
            scratch: figure("Scratch size")?,
            code: figure("Code size")?,
            waves: waves(vgprs),
            driver_waves: figure("Subgroups per SIMD")?.min(MAX_WAVES),
            unit: row.unit.clone(),
            main: assembly::main_loop(&compiled.assembly),
            goals: row.goals.clone(),
        })
    }

    /// Vector instructions of the main loop per unit of work.
    pub(super) fn valu_per_unit(&self) -> Option<f64> {
        let (main, unit) = (self.main?, self.unit.as_ref()?);
        Some(f64::from(main.mix.vector()) / unit.per_trip as f64)
    }

    /// The share of v_mac in the main loop's instructions.
    pub(super) fn mac_share(&self) -> Option<f64> {
        self.main.map(|main| main.mix.mac_share())
    }

    /// How busy shared memory is beside the vector units in the main loop.
    pub(super) fn lds_share(&self) -> Option<f64> {
        self.main.map(|main| main.mix.lds_share())
    }

    /// The row as JSON, in a fixed order and without what is not there.
    pub(super) fn json(&self) -> String {
        let mut fields = vec![format!("\"name\": {}", json!(self.name))];
        let mut add = |name: &str, value: Value| fields.push(format!("{}: {value}", json!(name)));
        add("vgprs", json!(self.vgprs));
        add("sgprs", json!(self.sgprs));
        for (name, value) in [("spills", self.spills), ("lds", self.lds), ("scratch", self.scratch)] {
            if value > 0 {
                add(name, json!(value));
            }
        }
        add("code", json!(self.code));
        add("waves", json!(self.waves.min(self.driver_waves)));
        if let (Some(unit), Some(valu)) = (&self.unit, self.valu_per_unit()) {
            add("unit", json!(unit.name));
            add("units_per_trip", json!(unit.per_trip));
            add("valu_per_unit", json!(rounded(valu)));
        }
        if let Some(Loop { mix, .. }) = &self.main {
            add("mac_share", json!(rounded(mix.mac_share())));
            if mix.lds > 0 {
                add("lds_share", json!(rounded(mix.lds_share())));
            }
            // In the order in which the report shows them.
            let counts = [mix.total, mix.mac, mix.cvt, mix.valu, mix.salu, mix.smem, mix.vmem, mix.lds, mix.wait];
            add("loop", json!(counts));
            add("vector_clocks", json!(mix.vector_clocks));
        }
        format!("{{{}}}", fields.join(", "))
    }
}

/// Three decimals: enough to tell apart, few enough to read.
pub(super) fn rounded(value: f64) -> f64 {
    (value * 1000.0).round() / 1000.0
}

/// Waves per SIMD for so many vector registers.
fn waves(vgprs: u32) -> u32 {
    WAVES.iter().find(|(most, _)| vgprs <= *most).map_or(1, |(_, waves)| *waves).min(MAX_WAVES)
}

/// The file of all figures: what `polaris estimate` reads.
pub(super) fn file(driver: &str, all: &[Figures]) -> String {
    let rows: Vec<String> = all.iter().map(|figures| format!("    {}", figures.json())).collect();
    format!("{{\n  \"driver\": {},\n  \"rows\": [\n{}\n  ]\n}}\n", json!(driver), rows.join(",\n"))
}

/// The report for people.
pub(super) fn table(all: &[Figures]) -> String {
    const HEAD: [&str; 19] = [
        "row", "vgpr", "sgpr", "spill", "lds", "scratch", "waves", "driver", "code", "loop", "mac", "cvt", "valu",
        "salu", "smem", "vmem", "lds", "wait", "per unit",
    ];
    let mut lines: Vec<Vec<String>> = Vec::new();
    let mut head: Vec<String> = HEAD.map(str::to_owned).into();
    head.extend(["mac share", "lds share"].map(str::to_owned));
    lines.push(head);
    for figures in all {
        let mut line = vec![figures.name.clone()];
        let numbers = [
            figures.vgprs,
            figures.sgprs,
            figures.spills,
            figures.lds,
            figures.scratch,
            figures.waves,
            figures.driver_waves,
            figures.code,
        ];
        line.extend(numbers.map(|number| number.to_string()));
        match &figures.main {
            None => line.extend(vec!["-".to_owned(); 9]),
            Some(Loop { mix, inner }) => {
                // An inner loop's instructions are counted once, however often it runs.
                let mark = if *inner > 0 { "*" } else { "" };
                line.push(format!("{}{mark}", mix.total));
                let counts = [mix.mac, mix.cvt, mix.valu, mix.salu, mix.smem, mix.vmem, mix.lds, mix.wait];
                line.extend(counts.map(|count| count.to_string()));
            }
        }
        let per_unit = figures.valu_per_unit().zip(figures.unit.as_ref());
        line.push(per_unit.map_or("-".into(), |(value, unit)| format!("{:.3}/{}", rounded(value), unit.name)));
        line.push(figures.mac_share().map_or("-".into(), |share| format!("{:.3}", rounded(share))));
        line.push(figures.lds_share().map_or("-".into(), |share| format!("{:.3}", rounded(share))));
        lines.push(line);
    }
    let width = |column: usize| lines.iter().map(|line| line[column].len()).max().unwrap_or(0);
    let widths: Vec<usize> = (0..lines[0].len()).map(width).collect();
    let mut text = String::new();
    for line in &lines {
        let cells = line.iter().zip(&widths).enumerate().map(|(column, (cell, &width))| match column {
            0 => format!("{cell:<width$}"),
            _ => format!("{cell:>width$}"),
        });
        let cells: Vec<String> = cells.collect();
        text.push_str(cells.join("  ").trim_end());
        text.push('\n');
    }
    if all.iter().any(|figures| figures.main.is_some_and(|main| main.inner > 0)) {
        text.push_str("* with loops inside, whose instructions are counted once\n");
    }
    text
}

#[cfg(test)]
pub(super) mod tests {
    use super::*;
    use crate::gcn4::assembly::Mix;

    /// A row as a mat-vec might have it.
    pub(in crate::gcn4) fn example() -> Figures {
        let mix =
            Mix { total: 100, mac: 60, cvt: 20, valu: 6, lds: 4, vector_clocks: 344, lds_clocks: 32, ..Mix::default() };
        Figures {
            name: "matvec.q4_0".into(),
            vgprs: 28,
            sgprs: 40,
            spills: 0,
            lds: 1024,
            scratch: 0,
            code: 900,
            waves: 8,
            driver_waves: 7,
            unit: Some(Unit { name: "weight".into(), per_trip: 32 }),
            main: Some(Loop { mix, inner: 0 }),
            goals: Vec::new(),
        }
    }

    #[test]
    fn waves_are_those_of_gcn4s_table_capped_at_radvs_eight() {
        let table =
            [(1, 8), (32, 8), (33, 7), (40, 6), (48, 5), (64, 4), (65, 3), (84, 3), (85, 2), (129, 1), (256, 1)];
        for (vgprs, expected) in table {
            assert_eq!(waves(vgprs), expected, "{vgprs} VGPRs");
        }
    }

    #[test]
    fn figures_come_from_the_statistics_and_the_main_loop() {
        let row = Row { name: "a".into(), variant: "a".into(), constants: Vec::new(), unit: None, goals: Vec::new() };
        let names = [
            "VGPRs",
            "SGPRs",
            "Spilled VGPRs",
            "Spilled SGPRs",
            "LDS size",
            "Scratch size",
            "Code size",
            "Subgroups per SIMD",
        ];
        let statistics = names.iter().zip([36.0, 16.0, 1.0, 2.0, 512.0, 4.0, 88.0, 10.0]);
        let mut compiled = Compiled {
            statistics: statistics.map(|(name, value)| ((*name).to_owned(), value)).collect(),
            assembly: "BB0:\n\tv_mac_f32_e32 v0, v1, v2\n\ts_cbranch_scc0 BB0\n".into(),
        };
        let figures = Figures::of(&row, &compiled).unwrap();
        assert_eq!((figures.spills, figures.waves, figures.driver_waves), (3, 7, 8));
        assert_eq!(figures.mac_share(), Some(0.5));
        assert_eq!(figures.valu_per_unit(), None);
        compiled.statistics.remove("VGPRs");
        assert_eq!(Figures::of(&row, &compiled), Err("a: the driver tells no \"VGPRs\"".into()));
    }

    #[test]
    fn the_file_is_json_with_the_derived_figures() {
        let file: Value = serde_json::from_str(&file("Mesa 1", &[example()])).unwrap();
        assert_eq!(file["driver"], "Mesa 1");
        let row = &file["rows"][0];
        assert_eq!((&row["valu_per_unit"], &row["mac_share"], &row["waves"]), (&json!(2.688), &json!(0.6), &json!(7)));
        assert_eq!(row["lds_share"], json!(0.372));
        assert_eq!(row.get("spills"), None);
    }

    #[test]
    fn the_table_has_a_line_for_every_row_with_its_unit() {
        let text = table(&[example()]);
        assert_eq!(text.lines().count(), 2, "{text}");
        assert!(text.contains("2.688/weight"), "{text}");
    }
}
