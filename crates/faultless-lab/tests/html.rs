//! `compare --html`: one file that needs nothing else, well-formed, with data in each chart; and in a browser, where there is one,
//! it renders without an error.

use faultless_lab::skipped::skipped;
use quick_xml::Reader;
use quick_xml::events::Event;
use std::collections::BTreeMap;
use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::process::{Command, Output};

const DESIGNS: [&str; 3] = ["mmap-lock", "vma-lock-hold", "faultless"];

fn faultless(arguments: &[&str]) -> Output {
    Command::new(env!("CARGO_BIN_EXE_faultless")).args(arguments).output().expect("the command runs")
}

/// The report of a short run, on a file whose name has markup in it.
fn report(folder: &Path) -> PathBuf {
    let (file, page) = (folder.join("<b>\"cold\" & 'it'.bin"), folder.join("report.html"));
    File::create(&file).and_then(|file| file.set_len(16 << 20)).expect("a file to map");
    let [file, name] = [&file, &page].map(|path| path.to_str().expect("a name"));
    let designs = DESIGNS.join(",");
    let output = faultless(&[
        "compare",
        "fork-during-io",
        "--design",
        &designs,
        "--seconds",
        "1",
        "--file",
        file,
        "--html",
        name,
    ]);
    let errors = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{errors}");
    assert!(!output.stdout.is_empty(), "the table is printed as well");
    page
}

/// Reads the page as XML in which `meta` and `br` have no end. Returns the text of each element, and its attributes, by the
/// element's path: "html body main section svg path".
fn elements(page: &str) -> BTreeMap<String, Vec<(String, String)>> {
    let mut reader = Reader::from_str(page);
    reader.config_mut().check_end_names = false;
    let (mut open, mut found) = (Vec::<String>::new(), BTreeMap::<String, Vec<(String, String)>>::new());
    loop {
        let at = reader.buffer_position();
        match reader.read_event().unwrap_or_else(|error| panic!("{error} at {at}")) {
            Event::Start(start) => {
                let name = start.name().as_ref().to_string();
                let attributes = start.as_ref().to_string();
                for attribute in start.html_attributes() {
                    attribute.unwrap_or_else(|error| panic!("{error} in <{attributes}>"));
                }
                open.push(name);
                found.entry(open.join(" ")).or_default().push((attributes, String::new()));
                if matches!(open.last().map(String::as_str), Some("meta" | "br")) {
                    open.pop();
                }
            }
            Event::End(end) => {
                let name = end.name().as_ref().to_string();
                assert_eq!(open.pop(), Some(name), "at {at}");
            }
            Event::Text(text) => {
                if let Some((_, all)) = found.get_mut(&open.join(" ")).and_then(|all| all.last_mut()) {
                    all.push_str(text.as_ref());
                }
            }
            Event::Eof => break,
            _ => {}
        }
    }
    assert!(open.is_empty(), "{open:?} has no end");
    found
}

#[test]
fn the_report_is_one_well_formed_file_with_data_in_each_chart() {
    let folder = tempfile::tempdir().expect("a folder");
    let page = fs::read_to_string(report(folder.path())).expect("a report");
    assert!(page.len() < 150_000, "{}", page.len());
    assert!(page.starts_with("<!DOCTYPE html>"));
    for foreign in
        ["http:", "https:", "src=", "@import", "<script", "<link", "url(/", "url(\"", "javascript:"]
    {
        assert!(!page.contains(foreign), "{foreign}");
    }
    // Names of files are text.
    assert!(!page.contains("<b>\"cold\"") && page.contains("&lt;b&gt;&quot;cold&quot; &amp; "), "escaped");

    let elements = elements(&page);
    let with = |end: &str| {
        elements.iter().filter(|(path, _)| path.ends_with(end)).flat_map(|(_, all)| all).collect::<Vec<_>>()
    };
    let of_class = |end: &str, class: &str| {
        let is_of = |attributes: &str| {
            let value = attributes.split_once("class=\"").and_then(|(_, rest)| rest.split_once('"'));
            value.is_some_and(|(value, _)| value.split(' ').any(|one| one == class))
        };
        with(end).into_iter().filter(|(attributes, _)| is_of(attributes)).collect::<Vec<_>>()
    };
    // Three latencies, the waits, a timeline for each design; each has a title and a description.
    let charts = of_class("svg", "plot");
    assert_eq!(charts.len(), 3 + 1 + DESIGNS.len());
    assert!(
        charts
            .iter()
            .all(|(attributes, _)| attributes.contains("role=\"img\"") && attributes.contains("aria-label="))
    );
    assert_eq!(with("svg desc").len(), charts.len());
    for design in DESIGNS {
        let curves = of_class("figure div svg path", &format!("d-{design}"));
        assert_eq!(curves.len(), 3, "curves of {design}");
        for (curve, _) in curves {
            let points = curve.matches('l').count();
            assert!((5..=90).contains(&points), "{points} points of {design}");
        }
    }
    let segments = of_class("svg rect", "seg");
    assert!(
        segments.len() >= DESIGNS.len() && segments.iter().all(|(rect, _)| !rect.contains("width=\"0\""))
    );
    for class in ["t-fault", "t-io", "t-lock"] {
        assert!(!of_class("details figure div svg path", class).is_empty(), "{class}");
    }
    assert!(!of_class("svg path", "arrow").is_empty(), "arrows");
    // The first screen.
    for wanted in ["Is it noise?", "How to repeat it", "--design mmap-lock,vma-lock-hold,faultless"] {
        assert!(page.contains(wanted), "{wanted}");
    }
    let lanes = with("details figure div svg text");
    assert!(lanes.iter().filter(|(_, text)| text == "bystander").count() >= DESIGNS.len());
}

#[test]
fn a_path_that_cannot_be_written_is_found_before_the_run() {
    let output = faultless(&["compare", "--seconds", "600", "--html", "/no/such/folder/r.html"]);
    let errors = String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.status.code(), Some(2), "{errors}");
    assert!(errors.contains("cannot write /no/such/folder/r.html"), "{errors}");
    let both = faultless(&["compare", "--json", "-", "--html", "-"]);
    let errors = String::from_utf8_lossy(&both.stderr);
    assert!(errors.contains("--json and --html would both write to standard output"), "{errors}");
}

/// The browser, if it is installed.
fn browser() -> Option<PathBuf> {
    let folders = std::env::var_os("PATH")?;
    let names = ["chromium", "chromium-browser", "google-chrome"];
    let mut all = std::env::split_paths(&folders).flat_map(|folder| names.map(|name| folder.join(name)));
    all.find(|path| path.is_file())
}

/// Opens a page in the browser. Returns its document when it is loaded, and the messages on its console.
fn opened(browser: &Path, page: &Path) -> (String, Vec<String>) {
    let profile = tempfile::tempdir().expect("a folder");
    let output = Command::new(browser)
        .args([
            "--headless=new",
            "--no-sandbox",
            "--disable-gpu",
            "--enable-logging=stderr",
            "--virtual-time-budget=5000",
        ])
        .args(["--window-size=1280,900", "--dump-dom"])
        .arg(format!("--user-data-dir={}", profile.path().display()))
        .arg(format!("file://{}", page.display()))
        .output()
        .expect("the browser runs");
    let errors = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{errors}");
    let console = errors.lines().filter(|line| line.contains("CONSOLE")).map(String::from).collect();
    (String::from_utf8_lossy(&output.stdout).into_owned(), console)
}

/// Shows the page in a frame of the width of a desk and of a phone, and writes the sizes of its charts.
const MEASURE: &str = r#"<!DOCTYPE html><meta charset="utf-8"><body><script>
const frame = (width) => new Promise((done) => {
  const frame = document.createElement("iframe");
  frame.width = width; frame.height = 900; frame.srcdoc = PAGE;
  frame.onload = () => done(frame.contentDocument);
  document.body.append(frame);
});
(async () => {
  const measured = [];
  for (const width of [1280, 390]) {
    const page = await frame(width);
    const size = (element) => { const box = element.getBoundingClientRect(); return box.width + box.height; };
    const charts = [...page.querySelectorAll("svg.plot")];
    const empty = charts.filter((chart) => size(chart) < 100 || ![...chart.querySelectorAll("path, rect")].some((one) => size(one) > 40));
    const tables = [...page.querySelectorAll("table.heat td")].filter((cell) => size(cell) > 10);
    measured.push(`${width}: ${charts.length} charts, ${empty.length} empty, ${tables.length > 0} cells, ` +
      `${page.documentElement.scrollWidth <= width} fits`);
  }
  document.title = "measured";
  document.body.innerHTML = "<pre>" + measured.join("\n") + "</pre>";
})();
</script>"#;

#[test]
fn a_browser_renders_it_without_an_error() {
    let Some(browser) = browser() else {
        skipped("no chromium, chromium-browser or google-chrome on PATH");
        return;
    };
    let folder = tempfile::tempdir().expect("a folder");
    let page = report(folder.path());
    let (document, console) = opened(&browser, &page);
    assert!(console.is_empty(), "{console:#?}");
    assert!(document.contains("<title>faultless compare: fork-during-io</title>"), "{document:.2000}");

    let text = serde_json::to_string(&fs::read_to_string(page).expect("a report")).expect("a string");
    let measuring = folder.path().join("measure.html");
    fs::write(&measuring, MEASURE.replace("PAGE", &text.replace("</", "<\\/"))).expect("a page");
    let (document, console) = opened(&browser, &measuring);
    assert!(console.is_empty(), "{console:#?}");
    for width in [1280, 390] {
        let wanted = format!("{width}: 7 charts, 0 empty, true cells, true fits");
        assert!(document.contains(&wanted), "{wanted} in {document}");
    }
}
