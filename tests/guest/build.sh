#!/bin/bash
# Makes the Linux guest that the interop tests boot: Debian's own kernel, taken out of its package (nothing is installed,
# no bootloader is touched), and an initramfs of busybox, e2fsprogs, nbd-client, open-iscsi, multipathd with udev, sg_xcopy, and the kernel
# modules that they need. What would start services of this machine when installed is taken out of its package too.
#   tests/guest/build.sh [FOLDER]      FOLDER (default out/guest) gets vmlinuz and initrd.gz; what is there and newer stays
# Needs: apt-get, dpkg, cpio, busybox-static, e2fsprogs, nbd-client. The download is about 28 MB, once.
set -euo pipefail
here=$(cd "$(dirname "$0")" && pwd)
folder=${1:-$here/../../out/guest}
mkdir -p "$folder"
folder=$(cd "$folder" && pwd)
work=

say() { printf 'build.sh: %s\n' "$*" >&2; }

# Two test runs at once must not build over each other.
exec 9>"$folder/lock"
flock 9
if [ -e "$folder/initrd.gz" ] && [ "$folder/initrd.gz" -nt "$here/init" ] && [ "$folder/initrd.gz" -nt "$here/build.sh" ] &&
    [ "$folder/initrd.gz" -nt "$here/multipath.conf" ]; then
    exit 0
fi

work=$(mktemp -d "$folder/work.XXXXXX")
trap 'rm -rf "$work"' EXIT

kernel_package() { apt-cache depends linux-image-cloud-amd64 2>/dev/null | sed -n 's/^ *Depends: \(linux-image-.*-cloud-amd64\)$/\1/p' | head -n 1; }

if ! ls "$folder"/linux-image-*.deb >/dev/null 2>&1; then
    package=$(kernel_package)
    if [ -z "$package" ]; then
        root=""
        [ "$(id -u)" = 0 ] || root=sudo
        $root apt-get update -qq
        package=$(kernel_package)
    fi
    [ -n "$package" ] || { say "apt knows no linux-image-cloud-amd64"; exit 1; }
    say "downloading $package"
    # As root apt warns that its own user cannot write here; it downloads all the same.
    (cd "$work" && apt-get download -qq -o APT::Sandbox::User=root "$package" >&2)
    mv "$work"/linux-image-*.deb "$folder/"
fi

# Programs that this machine need not have, and libraries of theirs that it may lack.
packages=(open-iscsi libopeniscsiusr libisns0 libkmod2 dmsetup libdevmapper1.02.1 multipath-tools udev libaio1 liburcu8 libjson-c5
    sg3-utils libsgutils2-1.46-2)
if ! ls "$folder"/libsgutils2-*.deb >/dev/null 2>&1; then
    apt-cache show open-iscsi >/dev/null 2>&1 || { root=""; [ "$(id -u)" = 0 ] || root=sudo; $root apt-get update -qq; }
    (cd "$work" && apt-get download -qq -o APT::Sandbox::User=root "${packages[@]}" >&2)
    mv "$work"/*.deb "$folder/"
fi
extra=$work/extra
for package in "${packages[@]}"; do dpkg -x "$(ls "$folder/$package"_*.deb | head -n 1)" "$extra"; done

kernel=$work/kernel root=$work/root
dpkg -x "$(ls "$folder"/linux-image-*.deb | head -n 1)" "$kernel"
[ -d "$kernel/lib/modules" ] || ln -s usr/lib "$kernel/lib"
version=$(basename "$(ls -d "$kernel"/lib/modules/*)")
mkdir -p "$root"/{bin,sbin,dev,proc,sys,tmp,mnt,etc,run} "$root/lib/modules/$version"
ln -s lib "$root/lib64"

# The modules, with all that they depend on.
busybox depmod -b "$kernel" "$version"
wanted=(virtio_pci virtio_blk virtio_net nbd sd_mod iscsi_tcp dm-multipath dm-service-time)
cp "$kernel/lib/modules/$version"/modules.{builtin,order} "$root/lib/modules/$version/"
for module in "${wanted[@]}"; do
    line=$(grep -E "(^|/)$module\.ko[^:]*:" "$kernel/lib/modules/$version/modules.dep") || { say "the kernel has no module $module"; exit 1; }
    for file in ${line/:/ }; do
        file=${file#/lib/modules/"$version"/}
        mkdir -p "$root/lib/modules/$version/$(dirname "$file")"
        cp "$kernel/lib/modules/$version/$file" "$root/lib/modules/$version/$file"
    done
done
busybox depmod -b "$root" "$version"

# The programs, with their libraries. Busybox is one static file under many names.
cp "$(command -v busybox)" "$root/bin/busybox"
for name in $("$root/bin/busybox" --list); do [ "$name" = busybox ] || ln -s busybox "$root/bin/$name"; done
take() {
    cp -L "$1" "$root/sbin/"
    LD_LIBRARY_PATH=$extra/usr/lib/$(uname -m)-linux-gnu:$extra/lib/$(uname -m)-linux-gnu:$extra/lib ldd "$1" | sed -nE 's,^[^/]*(/[^ ]+).*,\1,p' | while read -r library; do cp -Ln "$library" "$root/lib/"; done
}
PATH=$PATH:/usr/sbin:/sbin
for program in mkfs.ext4 e2fsck nbd-client; do
    at=$(command -v "$program") || { say "$program is not installed"; exit 1; }
    take "$at"
done
for program in iscsid iscsiadm dmsetup multipathd; do take "$(find "$extra/sbin" "$extra/usr/sbin" -name "$program" -type f 2>/dev/null | head -n 1)"; done
take "$extra/usr/bin/sg_xcopy"
take "$extra/bin/udevadm"
take "$extra/lib/udev/scsi_id"
ln -s udevadm "$root/sbin/systemd-udevd"
cp -r "$extra/lib/multipath" "$root/lib/"
cp -L "$(ldconfig -p | sed -n 's/.*libgcc_s\.so\.1 (libc6,x86-64) => //p' | head -n 1)" "$root/lib/" # multipathd loads it to end its threads
mkdir -p "$root/etc/multipath" "$root/etc/udev/rules.d" "$root/lib/udev"
ln -s ../../sbin/scsi_id "$root/lib/udev/scsi_id"
cp "$extra"/lib/udev/rules.d/{55-dm,95-dm-notify}.rules "$root/etc/udev/rules.d/"
# What 60-persistent-storage.rules says of a SCSI disk, without the links.
echo 'SUBSYSTEM=="block", KERNEL=="sd*", IMPORT{program}="scsi_id --export --whitelisted -d $devnode"' >"$root/etc/udev/rules.d/60-scsi.rules"
cp "$here/multipath.conf" "$root/etc/"
mkdir -p "$root/etc/iscsi" "$root/var/lib"
cp "$extra/etc/iscsi/iscsid.conf" "$root/etc/iscsi/"
echo "InitiatorName=iqn.2026-11.example:guest" >"$root/etc/iscsi/initiatorname.iscsi"
echo "root:x:0:0:root:/tmp:/bin/sh" >"$root/etc/passwd" # iscsid asks who speaks to it
cp "$here/init" "$root/init"
chmod 755 "$root/init"

(cd "$root" && find . | cpio --quiet -o -H newc | gzip -1) >"$work/initrd.gz"
cp "$kernel"/boot/vmlinuz-* "$folder/vmlinuz"
mv "$work/initrd.gz" "$folder/initrd.gz"
say "made $folder/vmlinuz and initrd.gz ($version)"
