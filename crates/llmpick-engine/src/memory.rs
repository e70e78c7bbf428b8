//! How much memory is free, and how much this process has used.
//!
//! On Linux the smaller of two figures counts: what the kernel says is available, and what
//! the process's cgroup may still take. Elsewhere nothing is known and nothing is refused.

use std::fs;
use std::path::Path;

/// Bytes that can be taken without swapping or hitting a limit; `None` where unknown.
pub(crate) fn available() -> Option<u64> {
    available_under(Path::new("/"))
}

/// The most bytes this process ever had resident; 0 where unknown.
pub(crate) fn peak_resident() -> u64 {
    let status = fs::read_to_string("/proc/self/status").unwrap_or_default();
    kilobytes(&status, "VmHWM:").unwrap_or(0)
}

fn available_under(root: &Path) -> Option<u64> {
    let meminfo = fs::read_to_string(root.join("proc/meminfo")).unwrap_or_default();
    let machine = kilobytes(&meminfo, "MemAvailable:");
    match (machine, cgroup_free(root)) {
        (Some(machine), Some(cgroup)) => Some(machine.min(cgroup)),
        (machine, cgroup) => machine.or(cgroup),
    }
}

/// What the cgroup may still take, the tightest level counting.
fn cgroup_free(root: &Path) -> Option<u64> {
    let membership = fs::read_to_string(root.join("proc/self/cgroup")).unwrap_or_default();
    let mut tightest: Option<u64> = None;
    for line in membership.lines() {
        let mut fields = line.splitn(3, ':');
        let (Some(_), Some(controllers), Some(path)) =
            (fields.next(), fields.next(), fields.next())
        else {
            continue;
        };
        let (base, names) = match controllers {
            "" => (root.join("sys/fs/cgroup"), V2),
            list if list.split(',').any(|c| c == "memory") => {
                (root.join("sys/fs/cgroup/memory"), V1)
            }
            _ => continue,
        };
        // Inside a container the path may be the host's, which is not mounted here; the
        // mount's own root is then the group.
        let own = base.join(path.trim_start_matches('/'));
        for folder in own.ancestors().take_while(|f| f.starts_with(&base)) {
            if let Some(free) = free_in(folder, &names) {
                tightest = Some(tightest.map_or(free, |t| t.min(free)));
            }
        }
    }
    tightest
}

/// File names of one cgroup version: limit, usage, and the reclaimable part in `memory.stat`.
struct Names {
    limit: &'static str,
    usage: &'static str,
    reclaimable: &'static str,
}
const V2: Names = Names {
    limit: "memory.max",
    usage: "memory.current",
    reclaimable: "inactive_file",
};
const V1: Names = Names {
    limit: "memory.limit_in_bytes",
    usage: "memory.usage_in_bytes",
    reclaimable: "total_inactive_file",
};

fn free_in(folder: &Path, names: &Names) -> Option<u64> {
    let number = |name: &str| -> Option<u64> {
        fs::read_to_string(folder.join(name))
            .ok()?
            .trim()
            .parse()
            .ok()
    };
    // "max" does not parse, and is no limit.
    let limit = number(names.limit)?;
    let usage = number(names.usage)?;
    // Cached file pages count as usage and go as soon as memory is wanted. Model files
    // leave gigabytes of them.
    let stat = fs::read_to_string(folder.join("memory.stat")).unwrap_or_default();
    let reclaimable = stat
        .lines()
        .find_map(|line| line.strip_prefix(names.reclaimable)?.trim().parse().ok())
        .unwrap_or(0u64);
    Some(limit.saturating_sub(usage.saturating_sub(reclaimable)))
}

fn kilobytes(text: &str, key: &str) -> Option<u64> {
    let line = text.lines().find_map(|line| line.strip_prefix(key))?;
    let kilobytes: u64 = line.trim().trim_end_matches("kB").trim().parse().ok()?;
    kilobytes.checked_mul(1024)
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    fn machine(files: &[(&str, &str)]) -> Option<u64> {
        let root = tempfile::tempdir().unwrap();
        for (path, content) in files {
            let path = root.path().join(path);
            fs::create_dir_all(path.parent().unwrap()).unwrap();
            fs::write(path, content).unwrap();
        }
        available_under(root.path())
    }

    const MEMINFO: (&str, &str) = (
        "proc/meminfo",
        "MemTotal: 9000 kB\nMemAvailable:    4000 kB\n",
    );

    #[test]
    fn the_smaller_limit_counts() {
        assert_eq!(machine(&[]), None);
        assert_eq!(machine(&[MEMINFO]), Some(4000 * 1024));
        let group = [
            MEMINFO,
            ("proc/self/cgroup", "0::/a/b\n"),
            ("sys/fs/cgroup/a/b/memory.max", "max\n"),
            ("sys/fs/cgroup/a/memory.max", "1000000\n"),
            ("sys/fs/cgroup/a/memory.current", "900000\n"),
            (
                "sys/fs/cgroup/a/memory.stat",
                "anon 5\ninactive_file 300000\n",
            ),
        ];
        assert_eq!(machine(&group), Some(400_000));
        let old = [
            MEMINFO,
            ("proc/self/cgroup", "5:cpu:/x\n4:memory:/docker/1\n"),
            ("sys/fs/cgroup/memory/memory.limit_in_bytes", "500000\n"),
            ("sys/fs/cgroup/memory/memory.usage_in_bytes", "100000\n"),
        ];
        assert_eq!(machine(&old), Some(400_000));
    }

    #[test]
    fn this_process_is_resident() {
        if cfg!(target_os = "linux") {
            assert!(peak_resident() > 1 << 20);
        }
    }
}
