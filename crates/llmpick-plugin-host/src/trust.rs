//! Whether somebody else could have put a file where it is.

use std::os::unix::fs::MetadataExt;

use camino::{Utf8Path, Utf8PathBuf};

use crate::LoadErrorKind;

/// Checks that `path` (canonical) and every folder above it belong to root or to us, and
/// that nobody else may write there. A sticky folder such as `/tmp` passes: others cannot
/// replace our files in it.
pub(crate) fn check(path: &Utf8Path) -> Result<(), LoadErrorKind> {
    path.ancestors().try_for_each(check_one)
}

fn check_one(path: &Utf8Path) -> Result<(), LoadErrorKind> {
    let metadata = std::fs::symlink_metadata(path).map_err(LoadErrorKind::Read)?;
    // SAFETY: `geteuid` has no preconditions and cannot fail.
    let us = unsafe { libc::geteuid() };
    let fact = Fact {
        path: path.to_owned(),
        mode: metadata.mode(),
        owner: metadata.uid(),
    };
    judge(fact, us)
}

struct Fact {
    path: Utf8PathBuf,
    mode: u32,
    owner: u32,
}

fn judge(fact: Fact, us: u32) -> Result<(), LoadErrorKind> {
    let Fact { path, mode, owner } = fact;
    if owner != 0 && owner != us {
        return Err(LoadErrorKind::Untrusted {
            problem: format!("belongs to user {owner}, who could change it"),
            remedy: "copy the plugin to a folder of your own".to_owned(),
            at: path,
        });
    }
    let sticky_folder = mode & libc::S_IFMT == libc::S_IFDIR && mode & libc::S_ISVTX != 0;
    if mode & (libc::S_IWGRP | libc::S_IWOTH) != 0 && !sticky_folder {
        return Err(LoadErrorKind::Untrusted {
            problem: format!("may be changed by others (mode {:04o})", mode & 0o7777),
            remedy: format!("run `chmod go-w {path}`"),
            at: path,
        });
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn others_must_not_be_able_to_change_it() {
        let verdict = |kind: u32, mode: u32, owner: u32| {
            let path = "/p".into();
            let mode = kind | mode;
            judge(Fact { path, mode, owner }, 1000).map_err(|e| e.to_string())
        };
        let (file, folder) = (libc::S_IFREG, libc::S_IFDIR);
        for good in [
            verdict(file, 0o755, 1000),
            verdict(file, 0o644, 0),
            verdict(folder, 0o755, 0),
            verdict(folder, 0o1777, 0),
        ] {
            assert_eq!(good, Ok(()));
        }
        assert_eq!(
            verdict(file, 0o775, 1000),
            Err("`/p` may be changed by others (mode 0775): run `chmod go-w /p`".into())
        );
        assert!(
            verdict(file, 0o1777, 1000).is_err(),
            "sticky files are no protection"
        );
        assert!(verdict(folder, 0o757, 0).is_err());
        assert_eq!(
            verdict(file, 0o755, 1001),
            Err("`/p` belongs to user 1001, who could change it: \
                 copy the plugin to a folder of your own"
                .into())
        );
    }
}
