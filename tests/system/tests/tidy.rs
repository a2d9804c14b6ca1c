//! What can be seen in the sources: the absences that ARCHITECTURE.md promises, and the house rules.
//!
//! Each rule is a function over text that returns what is wrong, tried on a wrong text beside it.

#![expect(clippy::unwrap_used, reason = "a test fails by panicking, in its functions too")]

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use serde_json::Value;

/// A file that is longer should be several.
const FILE_LINES_MAX: usize = 700;
/// Most files and folders that are looked at.
const FILES_MAX: usize = 20_000;
/// A crate that only one of ours may use, and which.
const ONLY: &[(&str, &str)] =
    &[("tss-esapi", "tpm"), ("tss-esapi-sys", "tpm"), ("cryptoki", "pkcs11")];
/// Folders of one machine. Split, so that this file does not hold them.
const MACHINE_PATHS: &[&str] = &[concat!("/ro", "ot/"), concat!("/wo", "rk/")];

type Table = BTreeMap<String, BTreeSet<String>>;

fn repository() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).ancestors().nth(2).unwrap().to_owned()
}

fn read(path: &Path) -> String {
    fs::read_to_string(path).unwrap_or_else(|error| panic!("{}: {error}", path.display()))
}

/// Every file that is ours, with its text; binary ones are left out. What `.gitignore` anchors is not ours.
fn files() -> Vec<(PathBuf, String)> {
    let root = repository();
    let ignored = read(&root.join(".gitignore"));
    let ignored: Vec<PathBuf> = ignored
        .lines()
        .filter_map(|line| line.strip_prefix('/'))
        .map(|path| root.join(path))
        .collect();
    let (mut folders, mut found) = (vec![root.clone()], Vec::new());
    while let Some(folder) = folders.pop() {
        for entry in fs::read_dir(&folder).unwrap() {
            let path = entry.unwrap().path();
            let skipped =
                path.ends_with(".git") || path.ends_with("target") || ignored.contains(&path);
            if skipped || path.is_symlink() {
                continue;
            }
            if path.is_dir() {
                folders.push(path);
            } else if let Ok(text) = String::from_utf8(fs::read(&path).unwrap()) {
                found.push((path.strip_prefix(&root).unwrap().to_owned(), text));
            }
            assert!(found.len() + folders.len() < FILES_MAX, "more than {FILES_MAX} files");
        }
    }
    assert!(found.len() > 20, "only {} files under {}", found.len(), root.display());
    found
}

fn files_ending(end: &str) -> Vec<(PathBuf, String)> {
    files().into_iter().filter(|(path, _)| path.to_string_lossy().ends_with(end)).collect()
}

fn none(wrong: &[String]) {
    assert!(wrong.is_empty(), "\n{}", wrong.join("\n"));
}

/// Names in backticks.
fn quoted(cell: &str) -> BTreeSet<String> {
    cell.split('`').skip(1).step_by(2).map(str::to_owned).collect()
}

/// Rows of the first table under a heading of ARCHITECTURE.md, as cells.
fn rows(text: &str, heading: &str) -> Vec<Vec<String>> {
    text.lines()
        .skip_while(|line| *line != heading)
        .skip(1)
        .take_while(|line| !line.starts_with("## "))
        .filter(|line| line.starts_with('|'))
        .skip(2)
        .map(|line| line.trim_matches('|').split('|').map(|cell| cell.trim().to_owned()).collect())
        .collect()
}

fn may_use(text: &str) -> Table {
    let mut table = Table::new();
    for row in rows(text, "## Dependencies between crates") {
        for name in quoted(&row[0]) {
            assert!(table.insert(name.clone(), quoted(&row[1])).is_none(), "{name} stands twice");
        }
    }
    table
}

struct Package {
    name: String,
    /// Name, and whether it is in this workspace.
    uses: Vec<(String, bool)>,
}

fn packages() -> Vec<Package> {
    let output = Command::new(env!("CARGO"))
        .args(["metadata", "--no-deps", "--offline", "--format-version", "1"])
        .current_dir(repository())
        .output()
        .unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    let metadata: Value = serde_json::from_slice(&output.stdout).unwrap();
    let text = |value: &Value| value.as_str().unwrap().to_owned();
    let uses = |package: &Value| {
        let list = package["dependencies"].as_array().unwrap();
        list.iter().map(|used| (text(&used["name"]), used["path"].is_string())).collect()
    };
    let list = metadata["packages"].as_array().unwrap();
    list.iter().map(|p| Package { name: text(&p["name"]), uses: uses(p) }).collect()
}

fn forbidden_uses(packages: &[Package], table: &Table) -> Vec<String> {
    let mut wrong = Vec::new();
    for Package { name, uses } in packages {
        let Some(allowed) = table.get(name) else {
            wrong.push(format!("{name} is not in the table of ARCHITECTURE.md"));
            continue;
        };
        for (used, ours) in uses {
            if *ours && used != name && !allowed.contains(used) {
                wrong.push(format!("{name} uses {used}; ARCHITECTURE.md allows {allowed:?}"));
            }
            if let Some((_, owner)) = ONLY.iter().find(|(crate_name, _)| crate_name == used)
                && owner != name
            {
                wrong.push(format!("{name} uses {used}, which only {owner} may"));
            }
        }
    }
    for name in table.keys().filter(|name| packages.iter().all(|package| package.name != **name)) {
        wrong.push(format!(
            "{name} stands in the table of ARCHITECTURE.md, but not in the workspace"
        ));
    }
    wrong
}

#[test]
fn crates_use_each_other_as_architecture_md_says() {
    let table = may_use(&read(&repository().join("ARCHITECTURE.md")));
    assert!(table.len() > 10, "{table:?}");
    none(&forbidden_uses(&packages(), &table));
}

#[test]
fn a_forbidden_use_is_found() {
    let table = may_use(
        "## Dependencies between crates\n\n| Crate | May use |\n|---|---|\n| `a`, `b` | – |\n\
         | `c` | `a` |\n| `gone` | – |\n## Next\n| `d` | `a` |\n",
    );
    let package = |name: &str, uses: &[(&str, bool)]| Package {
        name: name.to_owned(),
        uses: uses.iter().map(|(used, ours)| ((*used).to_owned(), *ours)).collect(),
    };
    let packages = [
        package("a", &[("b", true), ("a", true), ("serde", false)]),
        package("b", &[("cryptoki", false)]),
        package("c", &[("a", true)]),
        package("d", &[]),
    ];
    let wrong = forbidden_uses(&packages, &table);
    let named = |index: usize, words: &[&str]| words.iter().all(|word| wrong[index].contains(word));
    assert_eq!(wrong.len(), 4, "{wrong:?}");
    assert!(named(0, &["a uses b"]) && named(1, &["b uses cryptoki", "pkcs11"]));
    assert!(named(2, &["d is not in the table"]) && named(3, &["gone"]));
}

/// Folders that ARCHITECTURE.md marks with "`unsafe` allowed".
fn unsafe_folders(text: &str) -> Vec<String> {
    rows(text, "## Parts")
        .into_iter()
        .filter(|row| row.last().is_some_and(|cell| cell.contains("`unsafe` allowed")))
        .filter_map(|row| quoted(&row[0]).into_iter().find(|name| name.contains('/')))
        .collect()
}

/// Lines of code, comments and literals left out, in which the keyword stands.
fn unsafe_lines(text: &str) -> Vec<usize> {
    let word = concat!("un", "safe");
    let is_code = |line: &str| {
        let code = without_literals(line);
        code.split("//").next().is_some_and(|code| {
            code.split(|c: char| !c.is_alphanumeric() && c != '_').any(|token| token == word)
        })
    };
    text.lines().enumerate().filter(|(_, line)| is_code(line)).map(|(at, _)| at + 1).collect()
}

/// The line without what stands between quotation marks.
fn without_literals(line: &str) -> String {
    let (mut kept, mut inside, mut escaped) = (String::new(), false, false);
    for c in line.chars() {
        match c {
            '"' if !escaped => inside = !inside,
            _ if !inside => kept.push(c),
            _ => {}
        }
        escaped = c == '\\' && !escaped;
    }
    kept
}

#[test]
fn unsafe_code_is_only_where_architecture_md_allows_it() {
    let allowed = unsafe_folders(&read(&repository().join("ARCHITECTURE.md")));
    assert_eq!(allowed.len(), 3, "{allowed:?}");
    let mut wrong = Vec::new();
    for (path, text) in files_ending(".rs") {
        let lines = unsafe_lines(&text);
        if !lines.is_empty() && !allowed.iter().any(|folder| path.starts_with(folder)) {
            wrong.push(format!("{} lines {lines:?}: unsafe outside {allowed:?}", path.display()));
        }
    }
    none(&wrong);
}

#[test]
fn unsafe_code_is_told_from_words_about_it() {
    let word = concat!("un", "safe");
    let text = format!(
        "// {word} {{}}\nlet x = {word} {{ f() }};\n\"{word} fn\";\n{word}_code = 1;\n\
         {word} fn f() {{}}\nlet s = \"a\\\"{word}\"; // {word}\n"
    );
    assert_eq!(unsafe_lines(&text), [2, 5]);
}

/// Dependency lines of a manifest without a comment right above.
fn unexplained(manifest: &str) -> Vec<String> {
    let (mut section, mut previous, mut wrong) = ("", "", Vec::new());
    for line in manifest.lines() {
        let start = line.chars().next();
        if start == Some('[') {
            section = line.trim().trim_matches(['[', ']']);
        } else if section != "workspace.dependencies"
            && section.ends_with("dependencies")
            && start.is_some_and(char::is_alphanumeric)
            && !previous.trim_start().starts_with('#')
        {
            wrong.push(line.to_owned());
        }
        previous = line;
    }
    wrong
}

#[test]
fn every_dependency_has_its_reason() {
    let mut wrong = Vec::new();
    for (path, text) in files_ending("Cargo.toml") {
        wrong.extend(unexplained(&text).iter().map(|line| format!("{}: {line}", path.display())));
    }
    none(&wrong);
}

#[test]
fn a_dependency_without_reason_is_found() {
    let manifest = "[package]\nname = \"x\"\n[dependencies]\n# why\na = \"1\"\nb.workspace = true\n\
                    [dev-dependencies]\nc = \"1\"\n[target.'cfg(unix)'.dependencies]\nd = \"1\"\n\
                    [workspace.dependencies]\ne = \"1\"\n";
    assert_eq!(unexplained(manifest), ["b.workspace = true", "c = \"1\"", "d = \"1\""]);
}

/// Messages of `thiserror` that hold a field named `source`, which `Error::source` gives, too: a chain of causes would say
/// it twice. Wrapped errors (`#[from]` with `{0}`) are not looked at.
fn told_twice(text: &str) -> Vec<&str> {
    text.split("#[error(")
        .skip(1)
        .filter_map(|rest| rest.split(")]").next())
        .filter(|message| message.contains("{source"))
        .collect()
}

#[test]
fn no_error_has_its_field_source_in_its_text() {
    let mut wrong = Vec::new();
    for (path, text) in files_ending(".rs").iter().filter(|(path, _)| !path.ends_with("tidy.rs")) {
        wrong.extend(told_twice(text).iter().map(|line| format!("{}: {line}", path.display())));
    }
    none(&wrong);
    let text =
        "#[error(\"a: {cause}\")] A { cause: E }, #[error(\n\"b: {source}\"\n)] B { source: E }, ";
    assert_eq!(told_twice(text), ["\n\"b: {source}\"\n"]);
}

#[test]
fn no_file_is_too_long() {
    let long = |(path, text): &(PathBuf, String)| {
        let lines = text.lines().count();
        let generated = path.ends_with("Cargo.lock") || path.ends_with("resolved.config");
        (lines > FILE_LINES_MAX && !generated).then(|| format!("{}: {lines} lines", path.display()))
    };
    none(&files().iter().filter_map(long).collect::<Vec<_>>());
}

#[test]
fn no_file_names_a_folder_of_one_machine() {
    let mut wrong = Vec::new();
    for (path, text) in files() {
        for (at, line) in text.lines().enumerate() {
            if MACHINE_PATHS.iter().any(|folder| line.contains(folder)) {
                wrong.push(format!("{}:{}: {line}", path.display(), at + 1));
            }
        }
    }
    none(&wrong);
}

/// Targets of `](…)` that lead into the repository, without their anchors.
fn links(text: &str) -> Vec<String> {
    text.split("](")
        .skip(1)
        .filter_map(|rest| rest.split(')').next())
        .filter(|target| !target.contains("://") && !target.starts_with("mailto:"))
        .filter_map(|target| target.split(['#', ' ']).next())
        .filter(|path| !path.is_empty())
        .map(str::to_owned)
        .collect()
}

#[test]
fn links_lead_somewhere() {
    let mut wrong = Vec::new();
    for (path, text) in files_ending(".md") {
        let folder = repository().join(&path).parent().unwrap().to_owned();
        let dead = links(&text).into_iter().filter(|target| !folder.join(target).exists());
        wrong.extend(dead.map(|target| format!("{}: {target}", path.display())));
    }
    none(&wrong);
    let text = "[a](b.md#c) [d](https://e.org/f) ![g](h/i.svg) [j](#k) [l](m.md \"title\")";
    assert_eq!(links(text), ["b.md", "h/i.svg", "m.md"]);
}

/// Levels of the headings, code blocks left out.
fn headings(text: &str) -> Vec<usize> {
    let (mut levels, mut code) = (Vec::new(), false);
    for line in text.lines() {
        if line.trim_start().starts_with("```") {
            code = !code;
        }
        let level = line.chars().take_while(|&c| c == '#').count();
        if !code && level > 0 && line.chars().nth(level) == Some(' ') {
            levels.push(level);
        }
    }
    levels
}

#[test]
fn the_two_readmes_have_the_same_headings() {
    assert_eq!(headings("# a\n```\n# b\n```\n## c\n#d\n"), [1, 2]);
    let [english, french] = ["README.md", "README.fr.md"].map(|name| repository().join(name));
    match (english.exists(), french.exists()) {
        (true, true) => assert_eq!(headings(&read(&english)), headings(&read(&french))),
        (false, false) => println!("skipped: there is no README yet"),
        (english, french) => panic!("README.md: {english}, README.fr.md: {french}"),
    }
}
