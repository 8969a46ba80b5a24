//! The command as a user has it: exit codes, one line for bad input, JSON that keeps its schema.

use faultless_lab::skipped::skipped;
use std::path::Path;
use std::process::{Command, Output};

fn faultless(arguments: &[&str]) -> Output {
    Command::new(env!("CARGO_BIN_EXE_faultless")).args(arguments).output().expect("the command runs")
}

/// Exit code 2, nothing on standard output, and one line that says `wanted`.
fn assert_refused(arguments: &[&str], wanted: &str) {
    let output = faultless(arguments);
    let errors = String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.status.code(), Some(2), "{arguments:?}: {errors}");
    assert_eq!(errors.lines().count(), 1, "{arguments:?}: {errors}");
    assert!(errors.contains(wanted), "{arguments:?}: {errors}");
    assert!(output.stdout.is_empty(), "{arguments:?}");
}

/// An output never overwrites an input or another output, and a refused run leaves no file behind.
#[test]
fn outputs_are_files_of_their_own() {
    let folder = tempfile::tempdir().expect("a folder");
    let path = |name: &str| folder.path().join(name).to_str().expect("a name").to_string();
    let (data, again, new) = (path("data"), path("./data"), path("new"));
    std::fs::write(&data, [7; 8192]).expect("a file");
    assert_refused(
        &["compare", "fork-during-io", "--file", &data, "--html", &again],
        "this is the file of --file",
    );
    assert_refused(
        &["compare", "map-unmap", "--html", &new, "--json", &path("./new")],
        "this is the file of --html",
    );
    assert_refused(&["compare", "map-unmap", "--json", &new, "--html", "/no/such/r.html"], "/no/such/r.html");
    assert_refused(
        &["compare", "map-unmap", "--seconds", "0.1", "--file", &data],
        "no scenario of this run maps a file",
    );
    assert_eq!(std::fs::read(&data).expect("the file"), [7; 8192]);
    assert_eq!(std::fs::read_dir(folder.path()).expect("the folder").count(), 1, "nothing else is there");
}

/// An output that cannot be written costs none of the others.
#[cfg(target_os = "linux")]
#[test]
fn an_output_that_fails_leaves_the_others() {
    let folder = tempfile::tempdir().expect("a folder");
    let json = folder.path().join("r.json");
    let arguments = [
        "compare",
        "map-unmap",
        "--design",
        "faultless",
        "--seconds",
        "0.2",
        "--html",
        "/dev/full",
        "--json",
    ];
    let output = faultless(&[&arguments[..], &[json.to_str().expect("a name")]].concat());
    let errors = String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.status.code(), Some(2), "{errors}");
    assert!(errors.contains("/dev/full"), "{errors}");
    assert!(!output.stdout.is_empty(), "the table is printed");
    let report = std::fs::read(json).expect("a report");
    assert!(serde_json::from_slice::<serde_json::Value>(&report).is_ok());
}

/// Ctrl-C before anything is measured keeps an older result.
#[cfg(unix)]
#[test]
fn a_result_outlives_an_early_interrupt_of_the_next_run() {
    let folder = tempfile::tempdir().expect("a folder");
    let json = folder.path().join("r.json");
    std::fs::write(&json, "an older result").expect("a file");
    let child = Command::new(env!("CARGO_BIN_EXE_faultless"))
        .args(["compare", "map-unmap", "--seconds", "600", "--json"])
        .arg(&json)
        .stderr(std::process::Stdio::piped())
        .spawn()
        .expect("the command runs");
    std::thread::sleep(std::time::Duration::from_millis(500));
    let id = rustix::process::Pid::from_raw(child.id() as i32).expect("an id");
    rustix::process::kill_process(id, rustix::process::Signal::INT).expect("a signal");
    let output = child.wait_with_output().expect("it ends");
    let errors = String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.status.code(), Some(130), "{errors}");
    assert!(errors.contains("nothing is written"), "{errors}");
    assert_eq!(std::fs::read_to_string(&json).expect("the file"), "an older result");
}

/// Arguments that are no UTF-8 are paths or errors, and never end the command in another way.
#[cfg(unix)]
#[test]
fn arguments_need_not_be_utf_8() {
    use std::ffi::OsStr;
    use std::os::unix::ffi::OsStrExt;
    let folder = tempfile::tempdir().expect("a folder");
    let odd = folder.path().join(OsStr::from_bytes(b"r\xff.json"));
    let output = Command::new(env!("CARGO_BIN_EXE_faultless"))
        .args(["compare", "map-unmap", "--design", "faultless", "--seconds", "0.2", "--json"])
        .arg(&odd)
        .output()
        .expect("the command runs");
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    assert!(odd.exists());
    let output = Command::new(env!("CARGO_BIN_EXE_faultless")).arg(OsStr::from_bytes(b"\xff")).output();
    assert_eq!(output.expect("the command runs").status.code(), Some(2));
}

/// The trace of a recorded round opens in a viewer: it is JSON of the Trace Event format, with a process for each design, a named
/// track for each thread, and operations of the threads.
#[test]
fn a_recorded_round_is_written_as_a_trace() {
    let folder = tempfile::tempdir().expect("a folder");
    let path = folder.path().join("trace.json");
    let name = path.to_str().expect("a name");
    let output = faultless(&[
        "compare",
        "fork-during-io",
        "--design",
        "mmap-lock,faultless",
        "--seconds",
        "0.3",
        "--perfetto",
        name,
    ]);
    let errors = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{errors}");
    let text = errors.replace('\n', " ");
    assert!(text.contains("operations and waits of 2 recorded rounds."), "{errors}");
    assert!(errors.lines().all(|line| line.chars().count() <= 100), "{errors}");
    assert!(!output.stdout.is_empty(), "the table is printed as well");
    let trace: serde_json::Value =
        serde_json::from_slice(&std::fs::read(path).expect("a trace")).expect("a trace in JSON");
    let events = trace["traceEvents"].as_array().expect("events");
    let names = |of: &str| {
        let named = events.iter().filter(|event| event["ph"] == "M" && event["name"] == of);
        named.map(|event| event["args"]["name"].as_str().unwrap_or_default()).collect::<Vec<_>>()
    };
    // A recording that has ended early says so behind the name.
    let processes = names("process_name");
    assert!(processes.len() == 2, "{processes:?}");
    assert!(processes[0].starts_with("fork-during-io under mmap-lock"), "{processes:?}");
    assert!(processes[1].starts_with("fork-during-io under faultless"), "{processes:?}");
    for thread in ["reader 1", "stamper 2", "fork", "bystander"] {
        assert_eq!(names("thread_name").iter().filter(|name| **name == thread).count(), 2, "{thread}");
    }
    for (pid, operation) in
        [(1, "page fault"), (2, "page fault"), (1, "mmap"), (2, "munmap"), (2, "waits for I/O")]
    {
        let is_there = |event: &&serde_json::Value| event["pid"] == pid && event["name"] == operation;
        assert!(events.iter().any(|event| is_there(&event)), "{operation} of process {pid}");
    }
    assert_refused(&["compare", "--perfetto", "/no/such/folder/t.json"], "/no/such/folder/t.json");
    assert_refused(&["compare", "--perfetto", "-", "--json", "-"], "both write to standard output");
}

#[test]
fn bad_input_gets_one_line_and_exit_code_2() {
    assert_refused(&["compare", "--design", "nope"], "there are: mmap-lock");
    assert_refused(&["compare", "nope"], "there are: fork-during-io, retry-storm");
    assert_refused(&["compare", "--threads", "0"], "--threads 0");
    assert_refused(&["compare", "--threads", "1"], "2 threads");
    assert_refused(&["compare", "--io-latency", "soon"], "'soon'");
    assert_refused(&["compare", "--seconds", "0"], "'0'");
    for wrong in [&["compare", "--color", "sometimes"][..], &["compare", "--color"]] {
        assert_refused(wrong, "; there are: auto, always, never; see faultless compare --help");
    }
    assert_refused(&["compare", "--rate", "fork=never"], "'fork=never'");
    assert_refused(&["compare", "--rate", "spoon=1"], "spoon");
    assert_refused(&["compare", "--memory", "99999999999999999999G"], "99999999999999999999G");
    assert_refused(
        &["compare", "--memory", "1k"],
        "'1k' for '--memory <SIZE>': the size must be between 64K and 64G",
    );
    assert_refused(&["compare", "--memory", "lots"], "'lots'");
    assert_refused(&["compare", "--memory", "0"], "--memory");
    assert_refused(&["compare", "--memory", "1000G"], "--memory");
    assert_refused(&["compare", "--memory=-5M"], "'-5M'");
    for depth in ["0", "many", "1.5", "99999999999999999999999"] {
        assert_refused(&["compare", "--queue-depth", depth], depth);
    }
    assert_refused(&["compare", "--queue-depth=-1"], "'-1'");
    assert_refused(&["compare", "--queue-depth", "0"], "one read at a time is the least");
    assert_refused(&["compare", "--threads", "abc"], "write a whole number");
    assert_refused(
        &["compare", "--threads", "99999999999999999999999"],
        "too big; see faultless compare --help",
    );
    assert_refused(&["check", "--ops", "0"], "; see faultless check --help");
    assert_refused(&["chek"], "; see faultless --help");
    assert_refused(&["compare", "--seed", "-1"], "0 is the least");
    for name in [&["one\ntwo"][..], &["--design", "one\ntwo"], &["--rate", "one\ntwo=1"]] {
        assert_refused(&[&["compare"], name].concat(), "\\ntwo");
    }
    assert_refused(&["compare", "--json", "all"], "put the scenario first");
    for rate in ["fork", "fork=", "=5", "fork=-5", "fork=0", "fork=inf", "fork=1e9", "fork=5kHz"] {
        assert_refused(&["compare", "--rate", rate], rate);
    }
    assert_refused(&["compare", "page-fault", "--rate", "fork=5"], "there is no rate \"fork\"");
    assert_refused(&["compare", "disjoint-change", "--threads", "1"], "2 threads");
    assert_refused(&["compare", "giant-vma", "--threads", "9999"], "9999 threads; give at least");
    assert_refused(&["compare", "--json", "page-fault"], "put the scenario first");
    assert_refused(
        &["compare", "--json", "/no/such/folder/r.json", "--seconds", "0.1"],
        "/no/such/folder/r.json",
    );
}

/// Each option that takes a number, with a value that is too small for it and one that is too large.
const NUMBERS: [(&str, &str, &[&str]); 10] = [
    ("compare", "--threads", &["0", "10001", "1000000000"]),
    ("compare", "--seconds", &["0", "0.09", "604801"]),
    ("compare", "--io-latency", &["0", "10001ms"]),
    ("compare", "--queue-depth", &["0"]),
    ("compare", "--rate", &["fork=0", "fork=100001", "fork=99999999999999999999"]),
    ("compare", "--memory", &["0", "1k", "65G", "8191T", "99999999T"]),
    ("compare", "--seed", &["18446744073709551616"]),
    ("check", "--ops", &["0", "18446744073709551616"]),
    ("check", "--threads", &["0", "33", "1000000000"]),
    ("check", "--memory", &["0", "15K", "16383"]),
];

#[test]
fn a_number_that_cannot_be_is_named_with_its_option() {
    let never = ["99999999999999999999", "-1", "-5M", "-0.5s", "1e99", "nan", "inf", "0x10", "", "."];
    for (command, option, wrong) in NUMBERS {
        for value in never.iter().chain(wrong) {
            assert_refused(&[command, option, value], option);
            assert_refused(&[command, option, value], value);
        }
    }
    assert_refused(&["check", "--seed", "-1"], "'-1' for '--seed <N>'");
}

#[test]
fn a_number_at_its_limit_is_taken() {
    for options in [&["--seed", "18446744073709551615"][..], &["--queue-depth", "18446744073709551615"]] {
        let run = ["compare", "fork-during-io", "--design", "faultless", "--seconds", "0.1"];
        assert_eq!(faultless(&[&run, options].concat()).status.code(), Some(0), "{options:?}");
    }
    for how in [&["--files"][..], &["--threads", "3"]] {
        let run = ["check", "--ops", "500", "--seed", "18446744073709551615"];
        assert_eq!(faultless(&[&run, how].concat()).status.code(), Some(0), "{how:?}");
    }
}

/// A stack of 64 TiB is more than the address space has.
#[test]
fn a_thread_that_cannot_be_started_ends_the_run_with_one_line() {
    for arguments in [&["compare", "map-unmap", "--design", "faultless"][..], &["check", "--threads", "3"]] {
        let mut command = Command::new(env!("CARGO_BIN_EXE_faultless"));
        let output = command.args(arguments).env("RUST_MIN_STACK", (1_u64 << 46).to_string()).output();
        let output = output.expect("the command runs");
        let errors = String::from_utf8_lossy(&output.stderr);
        assert_eq!(output.status.code(), Some(2), "{arguments:?}: {errors}");
        assert!(errors.lines().count() == 1 && errors.contains("cannot start a thread"), "{errors}");
    }
}

#[test]
fn a_report_that_is_there_outlives_a_refused_run() {
    let folder = tempfile::tempdir().expect("a temporary folder");
    let path = folder.path().join("r.json");
    let name = path.to_str().expect("UTF-8");
    let old = "the result of an hour, longer than any report of a short run ".repeat(1000);
    std::fs::write(&path, &old).expect("a report");
    // Refused before the run, and by it.
    assert_refused(&["compare", "--json", name, "--threads", "0"], "--threads 0");
    assert_refused(&["compare", "--json", name, "--file", "/no/such/file"], "/no/such/file");
    assert_eq!(std::fs::read_to_string(&path).expect("the report"), old);

    let output =
        faultless(&["compare", "map-unmap", "--design", "faultless", "--seconds", "0.2", "--json", name]);
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    let report = std::fs::read_to_string(&path).expect("a report");
    assert!(serde_json::from_str::<serde_json::Value>(&report).is_ok(), "nothing of the old one is left");
}

#[test]
fn a_file_that_cannot_be_mapped_is_named() {
    let folder = tempfile::tempdir().expect("a temporary folder");
    let path = |name: &str| folder.path().join(name).to_str().expect("a path in UTF-8").to_owned();
    assert_refused(&["compare", "--file", &path("missing")], "missing");
    assert_refused(&["compare", "--file", folder.path().to_str().expect("UTF-8")], "folder");
    std::fs::write(path("empty"), b"").expect("an empty file");
    assert_refused(&["compare", "--file", &path("empty")], "empty");
    if rustix::process::geteuid().is_root() {
        return skipped("an unreadable file, because root may read every file");
    }
    use std::os::unix::fs::PermissionsExt;
    std::fs::write(path("secret"), [1; 8192]).expect("a file");
    std::fs::set_permissions(path("secret"), std::fs::Permissions::from_mode(0o000)).expect("its mode");
    assert_refused(&["compare", "--file", &path("secret")], "secret");
}

#[test]
fn a_file_that_shrinks_while_it_is_mapped_is_named() {
    let folder = tempfile::tempdir().expect("a temporary folder");
    let path = folder.path().join("shrinks");
    std::fs::write(&path, vec![7; 4 << 20]).expect("a file");
    let child = Command::new(env!("CARGO_BIN_EXE_faultless"))
        .args(["compare", "fork-during-io", "--design", "faultless", "--seconds", "20", "--file"])
        .arg(&path)
        .stdout(std::process::Stdio::piped())
        .stderr(std::process::Stdio::piped())
        .spawn()
        .expect("the command runs");
    // It has read the whole file by then, or it says that the file is too short: the same line.
    std::thread::sleep(std::time::Duration::from_millis(800));
    std::fs::OpenOptions::new()
        .write(true)
        .open(&path)
        .and_then(|file| file.set_len(8192))
        .expect("a shorter file");
    let output = child.wait_with_output().expect("it ends");
    let errors = String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.status.code(), Some(2), "{errors}");
    assert!(errors.lines().count() == 1 && errors.contains("shrunk"), "{errors}");
}

#[test]
fn a_short_comparison_keeps_the_schema() {
    let folder = tempfile::tempdir().expect("a temporary folder");
    let path = folder.path().join("r.json");
    let output = faultless(&[
        "compare",
        "fork-during-io",
        "--design",
        "mmap-lock,faultless",
        "--seconds",
        "1",
        "--json",
        path.to_str().expect("UTF-8"),
    ]);
    let errors = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{errors}");
    assert!(errors.is_empty(), "progress in a pipe: {errors}");
    let table = String::from_utf8_lossy(&output.stdout);
    assert!(table.contains("\nmmap-lock ") && table.contains("\nfaultless "), "{table}");
    check(&path);

    let output =
        faultless(&["compare", "fork-during-io", "--design", "faultless", "--seconds", "1", "--json", "-"]);
    let report: serde_json::Value = serde_json::from_slice(&output.stdout).expect("JSON and nothing else");
    assert_eq!(report["results"].as_array().map(Vec::len), Some(1));
}

fn check(path: &Path) {
    let report: serde_json::Value =
        serde_json::from_slice(&std::fs::read(path).expect("a report")).expect("a report in JSON");
    assert_eq!(report["schema"], 1);
    assert!(report["machine"]["cpus"].as_u64().is_some());
    let results = report["results"].as_array().expect("results");
    assert_eq!(results.len(), 2);
    for result in results {
        assert_eq!(result["scenario"], "fork-during-io");
        assert_eq!(result["headline"]["name"], "bystander_p99");
        assert_eq!(
            (&result["headline"]["unit"], &result["headline"]["better"]),
            (&"us".into(), &"lower".into())
        );
        for actor in ["fault", "fork", "bystander"] {
            for figure in ["count", "p50", "p99", "p999", "max"] {
                assert!(result["latency_us"][actor][figure].is_number(), "{actor} {figure}");
            }
        }
        assert!(result["cpu_us_per_major_fault"].is_number());
        assert_eq!(result["rates"], serde_json::json!({ "bystander": 499.0, "fork": 50.0 }));
        assert_eq!((&result["rounds"], &result["round_seconds"]), (&5.into(), &0.2.into()));
        let headline = &result["headline"];
        assert_eq!(headline["by_round"].as_array().map(Vec::len), Some(5));
        assert!(headline["against_best"]["rounds"] == 5 && headline["noise"].is_null(), "{headline}");
        let counter = |name: &str| result["counters"][name].as_f64().unwrap_or_else(|| panic!("no {name}"));
        assert!(counter("major_faults") > 0.0 && counter("io_reads") > 0.0);
        for name in
            ["mmap_lock_wait_us", "vma_lock_wait_us", "page_bit_wait_us", "range_wait_us", "io_rereads"]
        {
            assert!(counter(name) >= 0.0);
        }
        if result["design"] == "faultless" {
            assert_eq!(
                counter("mmap_lock_read") + counter("mmap_lock_write"),
                0.0,
                "faults take no mmap_lock"
            );
        } else {
            assert!(counter("mmap_lock_read") >= counter("major_faults"));
        }
    }
}

/// Small enough for a debug build on a busy machine.
const SMALL: [&str; 8] =
    ["--design", "mmap-lock,faultless", "--seconds", "0.5", "--memory", "64M", "--io-latency", "200us"];

/// Runs one scenario under two designs; what is wrong in it would be exit code 1.
fn runs(scenario: &str, more: &[&str]) {
    let mut arguments = vec!["compare", scenario, "--json"];
    arguments.extend(SMALL);
    arguments.extend(more);
    let output = faultless(&arguments);
    let errors = String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.status.code(), Some(0), "{arguments:?}: {errors}");
    let report: serde_json::Value = serde_json::from_slice(&output.stdout).expect("JSON and nothing else");
    let results = report["results"].as_array().expect("results");
    assert_eq!(results.len(), 2, "{arguments:?}");
    for result in results {
        assert_eq!(result["scenario"], scenario);
        let headline = &result["headline"];
        assert!(headline["value"].as_f64().is_some_and(|value| value > 0.0), "{arguments:?}: {result:#}");
        assert!(headline["min"].as_f64() <= headline["max"].as_f64());
        assert!(["us", "ns", "ratio", "1/s"].iter().any(|unit| headline["unit"] == *unit), "{headline}");
        assert!(["lower", "higher"].iter().any(|better| headline["better"] == *better), "{headline}");
        let figures = result["figures"].as_object().expect("figures");
        assert!(!figures.is_empty() && figures.values().all(|figure| figure["unit"].is_string()));
        let counters = result["counters"].as_object().expect("counters");
        let checked = counters.iter().filter(|(name, _)| name.ends_with("_checked"));
        assert!(checked.clone().count() > 0, "{arguments:?}: nothing is checked");
        for (name, n) in checked {
            assert!(n.as_f64().is_some_and(|n| n > 0.0), "{arguments:?}: {name} is {n}");
        }
        assert!(counters.contains_key("io_wait_us") && counters.contains_key("mmap_lock_wait_us"));
    }
}

macro_rules! every_scenario_runs {
    ($($test:ident: $scenario:literal $(, $more:literal)*;)*) => {
        $(#[test]
        fn $test() {
            runs($scenario, &[$($more),*]);
        })*

        #[test]
        fn every_scenario_is_run_by_a_test() {
            let tested = [$($scenario),*];
            for scenario in faultless_lab::scenarios::ALL {
                assert!(tested.contains(&scenario.name), "{} has no test", scenario.name);
            }
        }
    };
}

every_scenario_runs! {
    fork_during_io: "fork-during-io", "--threads", "3", "--rate", "fork=20";
    retry_storm: "retry-storm", "--threads", "12";
    retry_storm_of_one: "retry-storm", "--threads", "1";
    same_folio: "same-folio", "--threads", "3", "--queue-depth", "2";
    giant_vma: "giant-vma";
    giant_vma_of_three: "giant-vma", "--threads", "3";
    disjoint_change: "disjoint-change", "--threads", "3";
    page_fault: "page-fault";
    page_fault_of_one: "page-fault", "--threads", "1";
    map_unmap: "map-unmap", "--threads", "3";
    short_process: "short-process", "--threads", "2";
    many_threads: "many-threads";
}

/// Where the kernel's machine cannot run, its row says why, and the rest goes on.
#[test]
fn a_design_that_cannot_run_says_so_in_its_row() {
    let arguments = ["compare", "map-unmap", "--design", "native,faultless", "--seconds", "0.2", "--json"];
    let output = faultless(&arguments);
    assert_eq!(output.status.code(), Some(0), "{}", String::from_utf8_lossy(&output.stderr));
    let report: serde_json::Value = serde_json::from_slice(&output.stdout).expect("JSON");
    let native = &report["results"][0];
    assert_eq!((&native["design"], &report["results"][1]["design"]), (&"native".into(), &"faultless".into()));
    assert!(native["skipped"].is_string() != native["headline"]["value"].is_number(), "{native:#}");
    assert!(report["results"][1]["headline"]["value"].is_number());

    let output = faultless(&arguments[..6]);
    let table = String::from_utf8_lossy(&output.stdout);
    assert!(table.contains("\nnative ") && table.contains("\nfaultless "), "{table}");
    assert_eq!(table.contains("native cannot run: "), native["skipped"].is_string(), "{table}");
}

#[test]
fn one_table_for_each_scenario() {
    let output =
        faultless(&["compare", "map-unmap", "short-process", "--design", "faultless", "--seconds", "0.2"]);
    let text = String::from_utf8_lossy(&output.stdout);
    assert!(output.status.success() && text.contains("map-unmap: each thread"), "{text}");
    assert!(text.contains("short-process: a small process") && text.contains("Only faultless ran"), "{text}");
}

#[test]
fn without_a_scenario_there_is_one_table_of_four() {
    let output = faultless(&["compare", "--design", "mmap-lock,faultless", "--seconds", "0.2"]);
    let text = String::from_utf8_lossy(&output.stdout);
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    assert_eq!(text.matches("\ndesign ").count(), 1, "{text}");
    for name in ["fork-during-io", "retry-storm", "giant-vma", "disjoint-change"] {
        assert!(text.contains(name), "{name}: {text}");
    }
    for wanted in
        ["Checked without an error: ", "all frames returned", "\nRepeat:", "\nLook closer:", "--details"]
    {
        assert!(text.contains(wanted), "{wanted}: {text}");
    }
    assert!(text.contains(" compare --design mmap-lock,faultless --seconds 0.2\n"), "{text}");
}

#[test]
fn what_there_is_can_be_listed() {
    let lists = [
        ("designs", "mmap-lock"),
        ("designs", "native-syscall"),
        ("scenarios", "fork-during-io"),
        ("scenarios", "cannot show"),
    ];
    for (list, wanted) in lists {
        let output = faultless(&[list]);
        assert!(output.status.success());
        assert!(String::from_utf8_lossy(&output.stdout).contains(wanted));
    }
}
