//! Bar charts as SVG, for reports. The same numbers give the same text on every machine.

use std::fmt::Write as _;

/// A bar.
#[derive(Clone, Debug, PartialEq)]
pub struct Bar {
    /// What it stands for; told where the pointer rests on it.
    pub label: String,
    /// Its length; not negative.
    pub value: f64,
    /// Bars of one group have one colour.
    pub group: String,
}

/// A bar chart.
#[derive(Clone, Debug, PartialEq)]
pub struct Chart {
    /// Above it.
    pub title: String,
    /// What lengths mean, with the unit.
    pub axis: String,
    /// Whether lengths are logarithms of the values (values of zero have no bar).
    pub logarithmic: bool,
    /// From left to right.
    pub bars: Vec<Bar>,
}

const WIDTH: f64 = 960.0;
const HEIGHT: f64 = 320.0;
const LEFT: f64 = 70.0;
const RIGHT: f64 = 10.0;
const TOP: f64 = 34.0;
const BOTTOM: f64 = 44.0;

/// Told apart by people who do not see red and green alike (Okabe and Ito), and two greys.
const COLOURS: [&str; 9] =
    ["#0072b2", "#e69f00", "#009e73", "#cc79a7", "#56b4e9", "#d55e00", "#f0e442", "#555555", "#aaaaaa"];

impl Chart {
    /// The chart as an SVG document.
    #[must_use]
    pub fn to_svg(&self) -> String {
        let scale = Scale::of(self);
        let mut svg = String::new();
        let _ = writeln!(
            svg,
            "<svg xmlns=\"http://www.w3.org/2000/svg\" viewBox=\"0 0 {WIDTH} {HEIGHT}\" font-family=\"sans-serif\" font-size=\"11\">"
        );
        let _ = writeln!(svg, "<rect width=\"{WIDTH}\" height=\"{HEIGHT}\" fill=\"#ffffff\"/>");
        let _ = writeln!(svg, "<text x=\"{LEFT}\" y=\"16\" font-size=\"14\">{}</text>", escaped(&self.title));
        let _ = writeln!(
            svg,
            "<text transform=\"translate(14 {:.1}) rotate(-90)\" text-anchor=\"middle\">{}</text>",
            (TOP + HEIGHT - BOTTOM) / 2.0,
            escaped(&self.axis)
        );
        for (value, text) in scale.ticks() {
            let y = scale.y(value);
            let _ = writeln!(
                svg,
                "<path d=\"M{LEFT} {y:.1}H{:.1}\" stroke=\"#dddddd\"/><text x=\"{:.1}\" y=\"{:.1}\" text-anchor=\"end\">{text}</text>",
                WIDTH - RIGHT,
                LEFT - 6.0,
                y + 4.0
            );
        }
        let groups = self.groups();
        let step = (WIDTH - LEFT - RIGHT) / self.bars.len().max(1) as f64;
        for (i, bar) in self.bars.iter().enumerate() {
            let (x, y) = (LEFT + step * i as f64, scale.y(bar.value));
            let colour = groups.iter().position(|group| *group == bar.group).unwrap_or(0) % COLOURS.len();
            let _ = writeln!(
                svg,
                "<rect x=\"{x:.2}\" y=\"{y:.1}\" width=\"{:.2}\" height=\"{:.1}\" fill=\"{}\"><title>{}: {}</title></rect>",
                step * 0.9,
                HEIGHT - BOTTOM - y,
                COLOURS[colour],
                escaped(&bar.label),
                number(bar.value)
            );
        }
        let mut x = LEFT;
        for (i, group) in groups.iter().enumerate() {
            let _ = writeln!(
                svg,
                "<rect x=\"{x:.1}\" y=\"{:.1}\" width=\"10\" height=\"10\" fill=\"{}\"/><text x=\"{:.1}\" y=\"{:.1}\">{}</text>",
                HEIGHT - 24.0,
                COLOURS[i % COLOURS.len()],
                x + 14.0,
                HEIGHT - 15.0,
                escaped(group)
            );
            x += 30.0 + 6.5 * group.chars().count() as f64;
        }
        svg.push_str("</svg>\n");
        svg
    }

    /// In the order of their first bars.
    fn groups(&self) -> Vec<&str> {
        let mut groups: Vec<&str> = Vec::new();
        for bar in &self.bars {
            if !groups.contains(&bar.group.as_str()) {
                groups.push(&bar.group);
            }
        }
        groups
    }
}

/// From values to places.
struct Scale {
    low: f64,
    high: f64,
    logarithmic: bool,
}

impl Scale {
    fn of(chart: &Chart) -> Scale {
        let values = || chart.bars.iter().map(|bar| bar.value).filter(|value| value.is_finite() && *value > 0.0);
        let high = values().fold(0.0, f64::max);
        if !chart.logarithmic {
            return Scale { low: 0.0, high: if high > 0.0 { high } else { 1.0 }, logarithmic: false };
        }
        let least = values().fold(f64::INFINITY, f64::min);
        if high == 0.0 {
            return Scale { low: -1.0, high: 0.0, logarithmic: true };
        }
        let (low, high) = (least.log10().floor(), high.log10().ceil());
        Scale { low, high: if high > low { high } else { low + 1.0 }, logarithmic: true }
    }

    fn y(&self, value: f64) -> f64 {
        let place = match self.logarithmic {
            true if value > 0.0 => value.log10(),
            false if value > 0.0 => value,
            _ => self.low,
        };
        let part = ((place - self.low) / (self.high - self.low)).clamp(0.0, 1.0);
        HEIGHT - BOTTOM - part * (HEIGHT - TOP - BOTTOM)
    }

    /// Values with lines through the chart.
    fn ticks(&self) -> Vec<(f64, String)> {
        if self.logarithmic {
            let decades = (self.high - self.low).round() as i32;
            let every = (decades / 8 + 1).max(1);
            return (0..=decades)
                .step_by(every as usize)
                .map(|i| (10f64.powf(self.low + f64::from(i)), format!("1e{}", self.low as i32 + i)))
                .collect();
        }
        let magnitude = 10f64.powf(self.high.log10().floor());
        let step = [0.1, 0.2, 0.5, 1.0, 2.0].iter().map(|s| s * magnitude).find(|step| self.high / step <= 6.0);
        let step = step.unwrap_or(self.high);
        (0..=6)
            .map(|i| f64::from(i) * step)
            .take_while(|value| *value <= self.high * 1.0001)
            .map(|value| (value, number(value)))
            .collect()
    }
}

/// Three or more digits, whatever the magnitude.
fn number(value: f64) -> String {
    match value.abs() {
        0.0 => "0".to_owned(),
        magnitude if (0.01..1e6).contains(&magnitude) => {
            let text = format!("{value:.3}");
            text.trim_end_matches('0').trim_end_matches('.').to_owned()
        }
        _ => format!("{value:.2e}"),
    }
}

fn escaped(text: &str) -> String {
    let mut out = String::with_capacity(text.len());
    for c in text.chars() {
        match c {
            '&' => out.push_str("&amp;"),
            '<' => out.push_str("&lt;"),
            '>' => out.push_str("&gt;"),
            '"' => out.push_str("&quot;"),
            c if c.is_control() => out.push(' '),
            c => out.push(c),
        }
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    fn chart(logarithmic: bool, values: &[f64]) -> Chart {
        let bar = |(i, value): (usize, &f64)| Bar {
            label: format!("blk.{i}<&>"),
            value: *value,
            group: if i.is_multiple_of(2) { "q4_k".into() } else { "q6_k".into() },
        };
        let bars = values.iter().enumerate().map(bar).collect();
        Chart { title: "sensitivity".into(), axis: "nats".into(), logarithmic, bars }
    }

    #[test]
    fn a_chart_is_the_same_text_each_time() {
        let expected = include_str!("../tests/fixtures/chart.svg");
        assert_eq!(chart(false, &[4.5, 6.5625, 0.0, 5.25]).to_svg(), expected);
    }

    #[test]
    fn logarithms_span_whole_decades() {
        let svg = chart(true, &[2e-4, 0.3, 0.0]).to_svg();
        for text in [">1e-4<", ">1e0<", "blk.0&lt;&amp;&gt;: 2.00e-4"] {
            assert!(svg.contains(text), "{text} in {svg}");
        }
        assert!(!svg.contains("NaN") && !svg.contains("inf"));
    }

    #[test]
    fn charts_of_nothing_and_of_one_are_drawn() {
        for values in [&[][..], &[0.0], &[1.0], &[f64::NAN]] {
            for logarithmic in [false, true] {
                let svg = chart(logarithmic, values).to_svg();
                assert!(svg.ends_with("</svg>\n") && !svg.contains("y=\"NaN"), "{svg}");
            }
        }
    }
}
