//! Plots as SVG: white ground, so that they read on light and on dark pages, and colours that the colour-blind tell apart.

use std::ops::Range;

use anyhow::{Result, anyhow};
use plotters::{
    chart::{ChartBuilder, ChartContext},
    coord::{
        Shift,
        ranged1d::{DefaultFormatting, KeyPointHint, Ranged},
    },
    drawing::DrawingArea,
    element::{Circle, EmptyElement, PathElement, Rectangle, Text},
    prelude::{Cartesian2d, IntoDrawingArea, SVGBackend},
    series::LineSeries,
    style::{
        Color, FontDesc, FontFamily, FontStyle, IntoFont, RGBColor, WHITE,
        text_anchor::{HPos, Pos, VPos},
    },
};

use crate::{
    axis::{Axis, short},
    page::{Bar, Chart, Line},
};

/// Width of a plot, pixels: what a page of GitHub shows without shrinking it.
const WIDTH: u32 = 800;
const INK: RGBColor = RGBColor(0x24, 0x29, 0x2f);
const FAINT: RGBColor = RGBColor(0xd8, 0xde, 0xe4);
/// For bars that others are compared with.
const GREY: RGBColor = RGBColor(0x8c, 0x95, 0x9f);
/// Okabe and Ito, "Color Universal Design" (2008), without the yellow that is faint on white.
const COLOURS: [RGBColor; 7] = [
    RGBColor(0x00, 0x72, 0xb2),
    RGBColor(0xd5, 0x5e, 0x00),
    RGBColor(0x00, 0x9e, 0x73),
    RGBColor(0xcc, 0x79, 0xa7),
    RGBColor(0xe6, 0x9f, 0x00),
    RGBColor(0x56, 0xb4, 0xe9),
    RGBColor(0x00, 0x00, 0x00),
];
/// Letters are this wide, pixels: generous for sans-serif at 14 pixels.
const LETTER: u32 = 8;

type Area<'a> = DrawingArea<SVGBackend<'a>, Shift>;
type Plane<'a, 'b> = ChartContext<'a, SVGBackend<'b>, Cartesian2d<Marks, Marks>>;

/// The places of an axis that have a mark. The axes of a plane go from 0 to 1: [`Axis`] knows what that stands for.
struct Marks(Vec<f64>);

impl Ranged for Marks {
    type FormatOption = DefaultFormatting;
    type ValueType = f64;

    fn map(&self, value: &f64, (first, last): (i32, i32)) -> i32 {
        first + (value * f64::from(last - first)).round() as i32
    }

    fn key_points<Hint: KeyPointHint>(&self, _hint: Hint) -> Vec<f64> {
        self.0.clone()
    }

    fn range(&self) -> Range<f64> {
        0.0..1.0
    }
}

/// Draws a plot.
///
/// # Errors
/// The plot has no room for its parts.
pub fn svg(chart: &Chart) -> Result<String> {
    let mut text = String::new();
    let height = match chart {
        Chart::Bars { bars, .. } => 110 + 34 * u32::try_from(bars.len().max(1))?,
        Chart::Lines { .. } => 420,
    };
    {
        let area = SVGBackend::with_string(&mut text, (WIDTH, height)).into_drawing_area();
        area.fill(&WHITE).map_err(failed)?;
        match chart {
            Chart::Bars { title, unit, log, bars } => draw_bars(&area, title, unit, *log, bars)?,
            Chart::Lines { title, x, y, lines } => draw_lines(&area, title, [x, y], lines)?,
        }
        area.present().map_err(failed)?;
    }
    Ok(text)
}

/// Bars lie, so that their labels are read without turning the head.
fn draw_bars(area: &Area, title: &str, unit: &str, log: bool, bars: &[Bar]) -> Result<()> {
    let axis = Axis::around(bars.iter().flat_map(|bar| [bar.value, bar.low, bar.high]), log);
    let labels = width(bars.iter().map(|bar| &bar.label)) + 16;
    // At the right, room for a value behind the longest bar.
    let mut builder = ChartBuilder::on(area);
    builder.caption(title, font(17).style(FontStyle::Bold).color(&INK)).margin(10).margin_right(70);
    builder.x_label_area_size(44).y_label_area_size(labels);
    let rows = bars.len().max(1) as f64;
    let mut plane = builder.build_cartesian_2d(Marks(axis.marks()), Marks(Vec::new())).map_err(failed)?;
    let number = |place: &f64| short(axis.value(*place));
    let words = if log { format!("{unit} (logarithmic)") } else { unit.to_owned() };
    frame(&mut plane, [&words, ""], [&number, &|_| String::new()])?;
    let stands_out = |bar: &Bar| bar.label.starts_with("Sluice");
    let compares = bars.iter().any(stands_out);
    for (row, bar) in bars.iter().enumerate() {
        let middle = 1.0 - (row as f64 + 0.5) / rows;
        let half = 0.32 / rows;
        let colour = if stands_out(bar) || !compares { COLOURS[0] } else { GREY };
        let end = axis.place(bar.value).unwrap_or(0.0);
        let reach = [bar.low, bar.high].map(|value| axis.place(value));
        let label = font(14).color(&INK).pos(Pos::new(HPos::Right, VPos::Center));
        plane
            .draw_series([EmptyElement::at((0.0, middle)) + Text::new(bar.label.clone(), (-8, 0), label)])
            .map_err(failed)?;
        let shape = Rectangle::new([(0.0, middle - half), (end, middle + half)], colour.filled());
        plane.draw_series([shape]).map_err(failed)?;
        let mut furthest = end;
        if let [Some(low), Some(high)] = reach {
            whisker(&mut plane, [low, high], middle, half / 2.0)?;
            furthest = end.max(high);
        }
        let value = font(14).color(&INK).pos(Pos::new(HPos::Left, VPos::Center));
        plane
            .draw_series([EmptyElement::at((furthest, middle)) + Text::new(short(bar.value), (7, 0), value)])
            .map_err(failed)?;
    }
    Ok(())
}

/// From the lowest to the highest; nothing where they are the same.
fn whisker(plane: &mut Plane, [low, high]: [f64; 2], middle: f64, half: f64) -> Result<()> {
    if high <= low {
        return Ok(());
    }
    let stroke = |points: [(f64, f64); 2]| PathElement::new(points, INK.stroke_width(2));
    let end = |at| stroke([(at, middle - half), (at, middle + half)]);
    plane.draw_series([stroke([(low, middle), (high, middle)]), end(low), end(high)]).map_err(failed)?;
    Ok(())
}

fn draw_lines(area: &Area, title: &str, names: [&str; 2], lines: &[Line]) -> Result<()> {
    let points = || lines.iter().flat_map(|line| &line.points);
    let across = Axis::around(points().map(|point| point.0), true);
    let up = Axis::around(points().map(|point| point.1), true);
    let mut builder = ChartBuilder::on(area);
    let names_of_lines = width(lines.iter().map(|line| &line.label));
    builder.caption(title, font(17).style(FontStyle::Bold).color(&INK)).margin(10).margin_right(names_of_lines + 50);
    builder.x_label_area_size(44).y_label_area_size(70);
    let mut plane = builder.build_cartesian_2d(Marks(across.marks()), Marks(up.marks())).map_err(failed)?;
    frame(&mut plane, names, [&|place| short(across.value(*place)), &|place| short(up.value(*place))])?;
    for (number, (line, colour)) in lines.iter().zip(COLOURS.into_iter().cycle()).enumerate() {
        let places = line.points.iter().filter_map(|(x, y)| Some((across.place(*x)?, up.place(*y)?)));
        let places: Vec<(f64, f64)> = places.collect();
        let series = LineSeries::new(places, colour.filled().stroke_width(2)).point_size(4);
        plane.draw_series(series).map_err(failed)?;
        // Beside the plot, where it hides nothing.
        let (left, down) = (16, 24 * i32::try_from(number)? + 12);
        let name = font(14).color(&INK).pos(Pos::new(HPos::Left, VPos::Center));
        let entry = EmptyElement::at((1.0, 1.0))
            + PathElement::new([(left, down), (left + 20, down)], colour.stroke_width(2))
            + Circle::new((left + 10, down), 4, colour.filled())
            + Text::new(line.label.clone(), (left + 28, down), name);
        plane.draw_series([entry]).map_err(failed)?;
    }
    Ok(())
}

/// The grid, the numbers at it and the names of the axes.
fn frame(plane: &mut Plane, names: [&str; 2], numbers: [&dyn Fn(&f64) -> String; 2]) -> Result<()> {
    let [across, up] = names;
    let mut mesh = plane.configure_mesh();
    mesh.bold_line_style(FAINT).light_line_style(FAINT).axis_style(INK).label_style(font(13).color(&INK));
    mesh.axis_desc_style(font(14).color(&INK)).x_desc(across).y_desc(up);
    mesh.x_label_formatter(numbers[0]).y_label_formatter(numbers[1]);
    mesh.draw().map_err(failed)
}

/// Pixels that the longest of these labels takes, half of the plot at most.
fn width<'a>(labels: impl Iterator<Item = &'a String>) -> u32 {
    let longest = labels.map(|label| label.chars().count()).max().unwrap_or(0);
    u32::try_from(longest).unwrap_or(WIDTH).saturating_mul(LETTER).min(WIDTH / 2)
}

/// The reader's own sans-serif.
fn font(size: u32) -> FontDesc<'static> {
    (FontFamily::SansSerif, f64::from(size)).into_font()
}

/// The errors of the crate hold types that cannot leave a thread.
fn failed(error: impl std::fmt::Display) -> anyhow::Error {
    anyhow!("{error}")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn bars(log: bool, values: &[f64]) -> Chart {
        let bar = |value: &f64| Bar { label: "way & <means>".to_owned(), value: *value, low: 0.0, high: *value * 2.0 };
        let bars = values.iter().map(bar).collect();
        Chart::Bars { title: "Cost".to_owned(), unit: "ns".to_owned(), log, bars }
    }

    fn lines(points: &[(f64, f64)]) -> Chart {
        let lines = vec![Line { label: "zero".to_owned(), points: points.to_vec() }];
        Chart::Lines { title: "Growth".to_owned(), x: "services".to_owned(), y: "ns".to_owned(), lines }
    }

    #[test]
    fn what_has_no_place_does_not_stop_a_plot() {
        let odd = [0.0, -1.0, f64::NAN, f64::INFINITY, f64::NEG_INFINITY, 1e-300, 1e300, 5.0];
        for log in [false, true] {
            for values in [&[][..], &[0.0], &[f64::NAN], &[5.0], &odd] {
                let text = svg(&bars(log, values)).unwrap();
                assert!(text.starts_with("<svg") && text.trim_end().ends_with("</svg>"), "{text}");
            }
        }
        let points: Vec<_> = odd.into_iter().zip(odd.into_iter().rev()).collect();
        for points in [&[][..], &[(0.0, 0.0)], &[(1.0, 1.0)], &points] {
            svg(&lines(points)).unwrap();
        }
        svg(&Chart::Lines { title: String::new(), x: String::new(), y: String::new(), lines: Vec::new() }).unwrap();
    }

    #[test]
    fn values_and_labels_are_written() {
        let text = svg(&bars(false, &[12.0, 3456.0])).unwrap();
        for word in ["12", "3.46k", "ns", "Cost", "way &amp; &lt;means&gt;"] {
            assert!(text.contains(word), "{word} in {text}");
        }
    }

    #[test]
    fn plots_are_small() {
        let points: Vec<_> = (0..10).map(|power| (10_f64.powi(power), 10_f64.powi(power / 2))).collect();
        for text in [svg(&lines(&points)).unwrap(), svg(&bars(true, &[1.0, 20.0, 300.0, 4000.0, 50_000.0])).unwrap()] {
            assert!(text.len() < 16 * 1024, "{} bytes", text.len());
        }
    }
}
