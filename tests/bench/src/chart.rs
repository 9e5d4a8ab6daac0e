//! Figures as a picture: a panel each, with a bar for each thing measured, its spread, and the targets.

use std::path::Path;

use anyhow::{Context as _, Result, anyhow};
use plotters::{
    coord::{Shift, ranged1d::SegmentValue},
    prelude::*,
    style::text_anchor::{HPos, Pos, VPos},
};

use crate::report::{Bar, Report};

type Area<'a> = DrawingArea<SVGBackend<'a>, Shift>;

const WIDTH: u32 = 960;
/// Width of the names of bars.
const NAMES: u32 = 250;
/// Heights of the parts of a panel.
const TITLE: u32 = 34;
const BAR: u32 = 24;
const AXIS: u32 = 44;
const LINE: u32 = 20;
const GAP: u32 = 24;
const MARGIN: i32 = 16;

const TEXT: RGBColor = RGBColor(0x24, 0x29, 0x2f);
const QUIET: RGBColor = RGBColor(0x6e, 0x77, 0x81);
const GATEWAY: RGBColor = RGBColor(0x1f, 0x6f, 0xb2);
const CONTROL: RGBColor = RGBColor(0xb4, 0xbd, 0xc6);
const MET: RGBColor = RGBColor(0x1a, 0x7f, 0x37);
const MISSED: RGBColor = RGBColor(0xc9, 0x2a, 0x2a);

/// Draws the figures one below the other into an SVG file. `place` says where they were taken.
pub(crate) fn draw<'a>(path: &Path, place: &str, reports: impl Iterator<Item = &'a Report>) -> Result<()> {
    let reports: Vec<_> = reports.collect();
    let height = LINE + GAP + reports.iter().map(|report| height(report)).sum::<u32>();
    let root = SVGBackend::new(path, (WIDTH, height)).into_drawing_area();
    paint(&root, place, &reports)
        .map_err(|error| anyhow!("{error}"))
        .with_context(|| format!("cannot draw {}", path.display()))
}

fn height(report: &Report) -> u32 {
    TITLE + bars_height(report) + LINE * report.targets().len() as u32 + GAP
}

fn bars_height(report: &Report) -> u32 {
    BAR * report.bars().len() as u32 + AXIS
}

fn paint(root: &Area<'_>, place: &str, reports: &[&Report]) -> Result<(), Box<dyn std::error::Error>> {
    root.fill(&WHITE)?;
    let (head, mut rest) = root.split_vertically(LINE + GAP);
    write(&head, &format!("{place}. Blue: the gateway; grey: what it is compared with"), 12, QUIET, MARGIN)?;
    for report in reports {
        let (panel, below) = rest.split_vertically(height(report));
        self::panel(&panel, report)?;
        rest = below;
    }
    Ok(root.present()?)
}

fn panel(panel: &Area<'_>, report: &Report) -> Result<(), Box<dyn std::error::Error>> {
    let (title, rest) = panel.split_vertically(TITLE);
    write(&title, report.title(), 15, TEXT, 8)?;
    let (chart, mut rest) = rest.split_vertically(bars_height(report));
    if !report.bars().is_empty() {
        bars(&chart, report)?;
    }
    for target in report.targets() {
        let (line, below) = rest.split_vertically(LINE);
        let (word, color) = if target.met() { ("met", MET) } else { ("MISSED", MISSED) };
        write(&line, &format!("{word}: {target}"), 13, color, 2)?;
        rest = below;
    }
    Ok(())
}

fn write(
    area: &Area<'_>,
    text: &str,
    size: i32,
    color: RGBColor,
    down: i32,
) -> Result<(), Box<dyn std::error::Error>> {
    let style = ("sans-serif", size).into_font().color(&color);
    Ok(area.draw(&Text::new(text, (MARGIN, down), style))?)
}

fn bars(area: &Area<'_>, report: &Report) -> Result<(), Box<dyn std::error::Error>> {
    let bars = report.bars();
    let greatest = bars.iter().map(|bar| bar.samples.max()).chain(report.limit()).fold(0.0, f64::max);
    // Room for what is written behind the longest bar.
    let axis = if greatest > 0.0 { greatest * 1.35 } else { 1.0 };
    let last = bars.len() as i32 - 1;
    // The axis goes up, the list goes down.
    let at = |place: usize| last - place as i32;
    let name = |value: &SegmentValue<i32>| match value {
        SegmentValue::CenterOf(row) => {
            let bar = usize::try_from(last - row).ok().and_then(|place| bars.get(place));
            bar.map(|bar| bar.name.clone()).unwrap_or_default()
        }
        SegmentValue::Exact(_) | SegmentValue::Last => String::new(),
    };
    let mut chart = ChartBuilder::on(area)
        .margin_left(MARGIN)
        .margin_right(MARGIN)
        .x_label_area_size(AXIS - 4)
        .y_label_area_size(NAMES)
        .build_cartesian_2d(0.0..axis, (0..last).into_segmented())?;
    chart
        .configure_mesh()
        .disable_y_mesh()
        .light_line_style(WHITE)
        .bold_line_style(RGBColor(0xe6, 0xe9, 0xec))
        .axis_style(QUIET)
        .x_desc(report.unit())
        .x_labels(8)
        .y_labels(bars.len() + 1)
        .y_label_formatter(&name)
        .label_style(("sans-serif", 12).into_font().color(&TEXT))
        .draw()?;
    chart.draw_series(bars.iter().enumerate().map(|(place, bar)| {
        let (low, high) = (SegmentValue::Exact(at(place)), SegmentValue::Exact(at(place) + 1));
        let color = if bar.is_control { CONTROL } else { GATEWAY };
        let mut shape = Rectangle::new([(0.0, low), (bar.samples.median(), high)], color.filled());
        shape.set_margin(4, 4, 0, 0);
        shape
    }))?;
    chart.draw_series(bars.iter().enumerate().map(|(place, Bar { samples, .. })| {
        let row = SegmentValue::CenterOf(at(place));
        ErrorBar::new_horizontal(row, samples.min(), samples.median(), samples.max(), TEXT.stroke_width(1), 6)
    }))?;
    let behind = ("sans-serif", 12).into_font().color(&TEXT).pos(Pos::new(HPos::Left, VPos::Center));
    chart.draw_series(bars.iter().enumerate().map(|(place, Bar { samples, .. })| {
        let end = (samples.max(), SegmentValue::CenterOf(at(place)));
        EmptyElement::at(end) + Text::new(samples.to_string(), (8, 0), behind.clone())
    }))?;
    if let Some(limit) = report.limit() {
        let ends = vec![(limit, SegmentValue::Exact(0)), (limit, SegmentValue::Exact(last + 1))];
        chart.draw_series([PathElement::new(ends, MISSED.stroke_width(2))])?;
    }
    Ok(())
}
