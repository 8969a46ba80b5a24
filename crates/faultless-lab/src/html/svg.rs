//! SVG with colours from the page's style sheet: a backend for plotters, and compact paths.
//!
//! Coordinates are whole tenths of a pixel, which keeps the numbers short and is fine enough. The scale of a chart
//! does not change the width of strokes.

use maud::{Markup, PreEscaped, Render};
use plotters_backend::text_anchor::{HPos, VPos};
use plotters_backend::{
    BackendColor, BackendCoord, BackendStyle, BackendTextStyle, DrawingBackend, DrawingErrorKind,
};
use std::convert::Infallible;
use std::fmt::Write;

/// The number of coordinate units per pixel.
pub(super) const TENTHS: i32 = 10;

/// A path, in relative coordinates.
#[derive(Clone, Debug, Default)]
pub(super) struct Path {
    d: String,
    at: (i32, i32),
}

impl Path {
    /// Creates a path of straight lines through `points`.
    pub(super) fn through(points: impl IntoIterator<Item = (i32, i32)>) -> Self {
        let mut path = Self::default();
        for (n, point) in points.into_iter().enumerate() {
            path.step(if n == 0 { 'm' } else { 'l' }, point);
        }
        path
    }

    /// Adds a box.
    pub(super) fn add_box(&mut self, (x, y): (i32, i32), width: i32, height: i32) {
        self.step('m', (x, y));
        // The command "z" returns to the corner of the box.
        let _ = write!(self.d, "h{width}v{height}h{}z", -width);
    }

    /// Adds a line.
    pub(super) fn add_line(&mut self, from: (i32, i32), to: (i32, i32)) {
        self.step('m', from);
        self.step('l', to);
    }

    pub(super) fn len(&self) -> usize {
        self.d.len()
    }

    pub(super) fn is_empty(&self) -> bool {
        self.d.is_empty()
    }

    fn step(&mut self, command: char, to: (i32, i32)) {
        let (x, y) = (to.0 - self.at.0, to.1 - self.at.1);
        // A minus sign separates numbers too.
        let space = if y < 0 { "" } else { " " };
        let _ = write!(self.d, "{command}{x}{space}{y}");
        self.at = to;
    }
}

impl Render for Path {
    fn render_to(&self, buffer: &mut String) {
        buffer.push_str(&self.d);
    }
}

/// The look of an element of a chart: its class in the style sheet, and the tooltip.
#[derive(Clone, Debug)]
pub(super) struct Look {
    pub class: String,
    pub title: Option<String>,
}

/// A backend of plotters. It uses each colour as the number of a look.
pub(super) struct Backend<'a> {
    out: &'a mut String,
    size: (u32, u32),
    looks: &'a [Look],
}

impl<'a> Backend<'a> {
    /// Creates a backend that writes elements to `out`, for a chart of `size` units.
    pub(super) fn new(out: &'a mut String, size: (u32, u32), looks: &'a [Look]) -> Self {
        Self { out, size, looks }
    }

    fn element(&mut self, color: BackendColor, path: &Path) -> Result<(), DrawingErrorKind<Infallible>> {
        if color.alpha > 0.0 && !path.is_empty() {
            let Look { class, title } = &self.looks[usize::from(color.rgb.2)];
            let element = maud::html! {
                path class=(class) d=(path) { @if let Some(title) = title { title { (title) } } }
            };
            self.out.push_str(&element.0);
        }
        Ok(())
    }
}

/// Returns the colour that stands for look `number`.
pub(super) const fn look(number: u8) -> plotters::style::RGBColor {
    plotters::style::RGBColor(0, 0, number)
}

type Done = Result<(), DrawingErrorKind<Infallible>>;

impl DrawingBackend for Backend<'_> {
    type ErrorType = Infallible;

    fn get_size(&self) -> (u32, u32) {
        self.size
    }

    fn ensure_prepared(&mut self) -> Done {
        Ok(())
    }

    fn present(&mut self) -> Done {
        Ok(())
    }

    fn draw_pixel(&mut self, (x, y): BackendCoord, color: BackendColor) -> Done {
        self.element(color, &Path::through([(x, y), (x, y)]))
    }

    fn draw_line<S: BackendStyle>(&mut self, from: BackendCoord, to: BackendCoord, style: &S) -> Done {
        self.element(style.color(), &Path::through([from, to]))
    }

    fn draw_path<S: BackendStyle, I: IntoIterator<Item = BackendCoord>>(
        &mut self,
        path: I,
        style: &S,
    ) -> Done {
        self.element(style.color(), &Path::through(path))
    }

    fn draw_text<S: BackendTextStyle>(&mut self, text: &str, style: &S, (x, y): BackendCoord) -> Done {
        let (anchor, down) = (style.anchor(), style.size());
        let across = match anchor.h_pos {
            HPos::Left => "start",
            HPos::Center => "middle",
            HPos::Right => "end",
        };
        let y = match anchor.v_pos {
            VPos::Top => y + (0.8 * down) as i32,
            VPos::Center => y + (0.35 * down) as i32,
            VPos::Bottom => y,
        };
        let element = maud::html! { text x=(x) y=(y) text-anchor=(across) { (text) } };
        self.out.push_str(&element.0);
        Ok(())
    }

    fn estimate_text_size<S: BackendTextStyle>(
        &self,
        text: &str,
        style: &S,
    ) -> Result<(u32, u32), DrawingErrorKind<Infallible>> {
        let width = text.chars().count() as f64 * style.size() * 0.55;
        Ok((width as u32, style.size() as u32))
    }
}

/// Returns the output of plotters as markup.
pub(super) fn drawn(elements: String) -> Markup {
    PreEscaped(elements)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn paths_are_relative() {
        assert_eq!(Path::through([(10, 20), (15, 10), (15, 30)]).d, "m10 20l5-10l0 20");
        let mut boxes = Path::default();
        boxes.add_box((10, 20), 5, 7);
        boxes.add_box((30, 20), 5, 7);
        assert_eq!(boxes.d, "m10 20h5v7h-5zm20 0h5v7h-5z");
    }
}
