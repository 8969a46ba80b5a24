//! Draws the lists of designs and scenarios.

use super::Screen;
use super::grid::{Style, Text, items};
use crate::contender::Contender;
use crate::scenarios::{self, Better, Scenario};

/// Returns the list of designs. Each has its description and its source.
pub fn designs(screen: Screen) -> String {
    let line = |contender: &Contender| {
        (
            Text::new(contender.name()).styled(Style::Strong),
            format!("{}. Models: {}.", contender.about(), contender.source()),
        )
    };
    items(Contender::all().iter().map(line), screen)
}

/// Returns the list of scenarios. Each has its description, its source and its limits.
pub fn scenarios(screen: Screen) -> String {
    scenarios::ALL.iter().map(|scenario| one(scenario, screen)).collect::<Vec<_>>().join("\n\n")
}

fn one(scenario: &Scenario, screen: Screen) -> String {
    let Scenario { name, about, source, cannot_show, headline, threads, work, rates, .. } = scenario;
    let better = match headline.better {
        Better::Lower => "less is better",
        Better::Higher => "more is better",
        Better::Neither => "neither way is better",
    };
    let mut lines = vec![
        ("  does", about.to_string()),
        ("  source", source.to_string()),
        ("  headline", format!("{}; {better}", headline.title)),
        ("  threads", format!("{threads}: {work}")),
    ];
    if !rates.is_empty() {
        let rates: Vec<_> = rates.iter().map(|(name, hertz)| format!("--rate {name}={hertz}")).collect();
        lines.push(("  rates", rates.join(" ")));
    }
    lines.push(("  cannot show", cannot_show.to_string()));
    let lines = lines.into_iter().map(|(what, text)| (Text::new(what), text));
    let name = std::iter::once((Text::new(*name).styled(Style::Strong), String::new()));
    format!("{}\n{}", items(name, screen), items(lines, screen))
}
