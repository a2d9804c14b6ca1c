//! What runs, listens and may log in, as the finished tree says.

use std::os::unix::fs::PermissionsExt as _;
use std::path::Path;

use super::{InventoryError, Result, read_text};
use crate::tool::Tool;

/// Deepest folder of an image.
pub(super) const DEPTH_MAX: usize = 64;
const UNITS: &str = "usr/lib/systemd/system";
/// Folders in somebody's PATH, and the agent's.
const PROGRAMS: &[&str] = &["usr/bin/", "usr/sbin/", "usr/lib/casemate/bin/"];
/// set-user-ID and set-group-ID.
const SETID: u32 = 0o6000;
/// What a socket unit may listen on.
const LISTEN: &[&str] = &["ListenStream=", "ListenDatagram=", "ListenSequentialPacket="];

/// A regular file of the tree.
#[derive(Clone, Debug)]
pub(super) struct TreeFile {
    /// Below the tree.
    pub(super) path: String,
    pub(super) bytes: u64,
    mode: u32,
}

/// A program.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Program {
    pub(crate) path: String,
    pub(crate) bytes: u64,
}

/// A service, and what `systemd-analyze security` says of it: 0 is closed, 10 open.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Unit {
    pub(crate) name: String,
    pub(crate) exposure: f32,
}

/// An account. None can log in.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct User {
    pub(crate) name: String,
    pub(crate) uid: String,
    pub(crate) shell: String,
}

/// Every regular file, by path.
pub(super) fn walk(tree: &Path) -> Result<Vec<TreeFile>> {
    let mut files = Vec::new();
    walk_folder(tree, "", 0, &mut files)?;
    files.sort_by(|a, b| a.path.cmp(&b.path));
    Ok(files)
}

fn walk_folder(tree: &Path, below: &str, depth: usize, files: &mut Vec<TreeFile>) -> Result<()> {
    let folder = tree.join(below);
    if depth > DEPTH_MAX {
        return Err(InventoryError::TooDeep { path: folder });
    }
    let error = |cause| InventoryError::File { path: folder.clone(), cause };
    for entry in std::fs::read_dir(&folder).map_err(error)? {
        let entry = entry.map_err(error)?;
        let name = entry.file_name().to_string_lossy().into_owned();
        let path = if below.is_empty() { name } else { format!("{below}/{name}") };
        let metadata = entry.metadata().map_err(error)?;
        if metadata.is_dir() {
            walk_folder(tree, &path, depth + 1, files)?;
        } else if metadata.is_file() {
            let mode = metadata.permissions().mode();
            files.push(TreeFile { path, bytes: metadata.len(), mode });
        }
    }
    Ok(())
}

pub(super) fn programs(files: &[TreeFile]) -> Vec<Program> {
    let in_path = |file: &&TreeFile| PROGRAMS.iter().any(|folder| file.path.starts_with(folder));
    let program = |file: &TreeFile| Program { path: file.path.clone(), bytes: file.bytes };
    files.iter().filter(in_path).map(program).collect()
}

pub(super) fn setid(files: &[TreeFile]) -> Vec<String> {
    files.iter().filter(|file| file.mode & SETID != 0).map(|file| file.path.clone()).collect()
}

/// Services with their exposure, as systemd itself rates them without running them.
pub(super) fn units(tree: &Path, logs: &Path) -> Result<Vec<Unit>> {
    let names: Vec<String> = unit_files(tree, ".service")?
        .into_iter()
        // A template is rated through its instances, and a link through its target.
        .filter(|name| !name.contains('@') && !tree.join(UNITS).join(name).is_symlink())
        .collect();
    let answer = Tool::new("systemd-analyze", "systemd-analyze", logs)
        .args(["security", "--offline=true", "--no-pager"])
        .path_arg("--root=", tree)
        .args(&names)
        .run()?;
    let units = exposures(&String::from_utf8_lossy(&answer));
    if units.len() != names.len() {
        return Err(InventoryError::Answer {
            tool: "systemd-analyze security",
            found: format!("{} ratings", units.len()),
            expected: "one for each service of the image",
        });
    }
    Ok(units)
}

/// Lines such as `→ Overall exposure level for x.service: 0.9 SAFE :-}`.
fn exposures(text: &str) -> Vec<Unit> {
    let line = |line: &str| {
        let (_, rest) = line.split_once("Overall exposure level for ")?;
        let (name, rest) = rest.split_once(": ")?;
        let exposure = rest.split_whitespace().next()?.parse().ok()?;
        Some(Unit { name: name.to_owned(), exposure })
    };
    let mut units: Vec<Unit> = text.lines().filter_map(line).collect();
    units.sort_by(|a, b| a.name.cmp(&b.name));
    units
}

pub(super) fn ports(tree: &Path) -> Result<Vec<String>> {
    let mut ports = Vec::new();
    for name in unit_files(tree, ".socket")? {
        let text = read_text(&tree.join(UNITS).join(&name))?;
        ports.extend(addresses(&text).map(|address| format!("{address} ({name})")));
    }
    Ok(ports)
}

/// Addresses of a socket unit that are neither paths nor abstract names nor netlink families.
fn addresses(unit: &str) -> impl Iterator<Item = &str> {
    let address = |line| LISTEN.iter().find_map(|key| str::strip_prefix(line, key));
    unit.lines().filter_map(address).filter(|address| !address.starts_with(['/', '@', '%']))
}

fn unit_files(tree: &Path, ending: &str) -> Result<Vec<String>> {
    let folder = tree.join(UNITS);
    let error = |cause| InventoryError::File { path: folder.clone(), cause };
    let mut names = Vec::new();
    for entry in std::fs::read_dir(&folder).map_err(error)? {
        let name = entry.map_err(error)?.file_name().to_string_lossy().into_owned();
        if name.ends_with(ending) {
            names.push(name);
        }
    }
    names.sort_unstable();
    Ok(names)
}

/// Accounts of a passwd file (passwd(5)).
pub(super) fn users(passwd: &str) -> Vec<User> {
    let user = |line: &str| {
        let fields: Vec<&str> = line.split(':').collect();
        let [name, _, uid, _, _, _, shell] = fields[..] else { return None };
        Some(User { name: name.to_owned(), uid: uid.to_owned(), shell: shell.to_owned() })
    };
    passwd.lines().filter_map(user).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_tree_is_walked_with_sizes_and_modes() {
        let tree = tempfile::tempdir().unwrap();
        std::fs::create_dir_all(tree.path().join("usr/bin")).unwrap();
        let file = tree.path().join("usr/bin/tool");
        std::fs::write(&file, "123").unwrap();
        std::fs::set_permissions(&file, std::fs::Permissions::from_mode(0o4755)).unwrap();
        std::os::unix::fs::symlink("tool", tree.path().join("usr/bin/link")).unwrap();
        let files = walk(tree.path()).unwrap();
        assert_eq!(programs(&files), [Program { path: "usr/bin/tool".to_owned(), bytes: 3 }]);
        assert_eq!(setid(&files), ["usr/bin/tool"]);
    }

    #[test]
    fn only_addresses_of_the_network_are_ports() {
        let unit =
            "[Socket]\nListenStream=/run/a.sock\nListenStream=8443\nListenDatagram=[::]:53\n";
        assert_eq!(addresses(unit).collect::<Vec<_>>(), ["8443", "[::]:53"]);
    }

    #[test]
    fn ratings_are_read_from_systemd_s_words() {
        let text = "✗ X=  y  0.2\n→ Overall exposure level for b.service: 9.6 UNSAFE\n\
                    → Overall exposure level for a.service: 0.9 SAFE :-}\n";
        let unit = |name: &str, exposure| Unit { name: name.to_owned(), exposure };
        assert_eq!(exposures(text), [unit("a.service", 0.9), unit("b.service", 9.6)]);
    }

    #[test]
    fn accounts_are_those_of_passwd() {
        let users = users("root:x:0:0:root:/root:/usr/sbin/nologin\n\n");
        assert_eq!((users.len(), users[0].uid.as_str()), (1, "0"));
    }
}
