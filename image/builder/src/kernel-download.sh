# Runs on the build machine at the end of the bootstrap; $1 is the tree. Downloads, through the tree's own apt
# configuration and so with its signature checks, the kernel that the meta-package names. Its own scripts are not run:
# the builder makes the initrd.
set -eu
export APT_CONFIG="$MMDEBSTRAP_APT_CONFIG"
kernel=$(apt-cache depends "$CASEMATE_KERNEL" | sed -n 's/^ *Depends: \(linux-image-[^ ]*\)$/\1/p' | head -n 1)
test -n "$kernel"
cd "$CASEMATE_DEBS"
apt-get --quiet download "$kernel"
printf '%s' "$kernel" > "$CASEMATE_OUT/kernel-package"
ls -t "$kernel"_*.deb | head -n 1 > "$CASEMATE_OUT/kernel-deb"
