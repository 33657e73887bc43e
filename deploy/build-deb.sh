#!/bin/bash
# Builds the Debian package of blockd, pfcli and pfinspect. It brings its own .NET runtime: Debian 12 has none.
#   deploy/build-deb.sh [--output DIR] [--revision N] [--quick]
#     --output    where blockd_VERSION-N_ARCH.deb goes (default: out)
#     --revision  N, the revision of the package (default: 1)
#     --quick     packs faster and larger
# Needs the .NET 10 SDK and dpkg-deb; the runtime pack and the compiler for ReadyToRun come from the package registry of the SDK.
# The same commit gives the same bytes, wherever and whenever it is built: times are SOURCE_DATE_EPOCH, by default that of
# the commit, paths are mapped away, and the build happens in a clean copy of the tree.
set -euo pipefail
umask 022
export LC_ALL=C TZ=UTC
root=$(cd "$(dirname "$0")/.." && pwd)
output=$root/out revision=1 compression=(-Zxz -z6)

fail() {
    printf 'build-deb.sh: %s\n' "$*" >&2
    exit 1
}

while [ $# -gt 0 ]; do
    case $1 in
        --output) output=${2:?--output needs a folder} && shift 2 ;;
        --revision) revision=${2:?--revision needs a number} && shift 2 ;;
        --quick) compression=(-Zgzip -z1) && shift ;;
        *) fail "$1 is no option; see the top of the script" ;;
    esac
done
[[ $revision =~ ^[0-9A-Za-z.+~]+$ ]] || fail "--revision '$revision': letters, digits and . + ~"
mkdir -p "$output"
output=$(cd "$output" && pwd)

for home in "${DOTNET_ROOT:-}" "$HOME/.dotnet" /usr/share/dotnet /usr/lib/dotnet; do
    [ -n "$home" ] && [ -x "$home/dotnet" ] && ! command -v dotnet >/dev/null && PATH=$home:$PATH
done
command -v dotnet >/dev/null || fail "the .NET 10 SDK is missing; ./start.sh says how to install it"
command -v dpkg-deb >/dev/null || fail "dpkg-deb is missing: apt-get install dpkg"
case $(uname -m) in
    x86_64) arch=amd64 rid=linux-x64 ;;
    aarch64) arch=arm64 rid=linux-arm64 ;;
    *) fail "no package for $(uname -m): x86_64 and aarch64 only" ;;
esac
upstream=$(sed -n 's:.*<Version>\(.*\)</Version>.*:\1:p' "$root/Directory.Build.props")
[ -n "$upstream" ] || fail "Directory.Build.props names no version"
version=$upstream-$revision
if [ -z "${SOURCE_DATE_EPOCH:-}" ]; then
    SOURCE_DATE_EPOCH=$(git -c safe.directory='*' -C "$root" log -1 --format=%ct 2>/dev/null || stat -c %Y "$root/Directory.Build.props")
fi
export SOURCE_DATE_EPOCH

work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
source=$work/source published=$work/published stage=$work/stage
mkdir "$source" "$stage"

# The tree without what was built in it.
if git -c safe.directory='*' -C "$root" rev-parse --git-dir >/dev/null 2>&1; then
    (cd "$root" && git -c safe.directory='*' ls-files -z --cached --others --exclude-standard |
        while IFS= read -r -d '' file; do [ ! -e "$file" ] || printf '%s\0' "$file"; done |
        tar --null -T - -c) | tar -x -C "$source"
else
    tar -c -C "$root" --exclude=./out --exclude=bin --exclude=obj . | tar -x -C "$source"
fi

export DOTNET_CLI_TELEMETRY_OPTOUT=1 DOTNET_NOLOGO=1 DOTNET_SYSTEM_GLOBALIZATION_INVARIANT=1
unset DOTNET_ROOT
log=$work/log
for project in blockd tools/pfcli tools/pfinspect; do
    # Not trimmed: System.Text.Json and ASP.NET Core find some of what they use by reflection.
    if ! (cd "$source" && dotnet publish "$project" -c Release -r "$rid" --self-contained -o "$published" -v quiet \
        -p:PublishReadyToRun=true -p:NuGetAudit=false -p:EnableSourceControlManagerQueries=false \
        "-p:PathMap=$source=/usr/src/blockd-$upstream") >"$log" 2>&1; then
        cat "$log" >&2
        fail "$project does not build"
    fi
done

# -- the programs
library=$stage/usr/lib/blockd
install -d "$library" "$stage/usr/bin" "$stage/usr/sbin"
cp -r "$published/." "$library"
# Documentation for compilers, and what only debuggers and LTTng use.
rm -f "$library"/*.xml "$library"/*.staticwebassets.* "$library/createdump" "$library/libmscordbi.so" "$library/libcoreclrtraceptprovider.so"
find "$library" -type f -exec chmod 0644 {} +
chmod 0755 "$library/blockd" "$library/pfcli" "$library/pfinspect"
ln -s ../lib/blockd/blockd "$stage/usr/sbin/blockd"
ln -s ../lib/blockd/pfinspect "$stage/usr/sbin/pfinspect"
install -m 0755 "$source/deploy/deb/pfcli" "$stage/usr/bin/pfcli"

# -- the service
install -D -m 0644 "$source/deploy/blockd.service" "$stage/lib/systemd/system/blockd.service"
install -D -m 0644 "$source/deploy/blockd.socket" "$stage/lib/systemd/system/blockd.socket"
install -D -m 0644 "$source/deploy/blockd.sysusers.conf" "$stage/usr/lib/sysusers.d/blockd.conf"
install -D -m 0644 "$source/deploy/blockd.tmpfiles.conf" "$stage/usr/lib/tmpfiles.d/blockd.conf"
install -D -m 0644 "$source/deploy/blockd.json" "$stage/etc/blockd/blockd.json"

# -- what one reads
documents=$stage/usr/share/doc/blockd
install -d "$documents" "$stage/usr/share/man/man1" "$stage/usr/share/man/man8"
cp -r "$source/docs/." "$documents"
install -m 0644 "$source/README.md" "$documents/README.md"
install -m 0644 "$source/deploy/deb/copyright" "$documents/copyright"
# The notices of the runtime that is in the package, as its own package brings them.
packages=$(cd "$source" && dotnet nuget locals global-packages --list | sed 's/^global-packages: //')
runtime=$(sed -n 's:.*"runtimepack.Microsoft.NETCore.App.Runtime.[^/]*/\([^"]*\)".*:\1:p' "$library/blockd.deps.json" | head -n 1)
notices=$packages/microsoft.netcore.app.runtime.$rid/$runtime
[ -e "$notices/LICENSE.TXT" ] || fail "the licence of the runtime is not in $notices"
cp "$notices/LICENSE.TXT" "$documents/LICENSE.dotnet"
cp "$notices/THIRD-PARTY-NOTICES.TXT" "$documents/THIRD-PARTY-NOTICES.dotnet"
gzip -9nc "$source/CHANGELOG.md" >"$documents/changelog.gz"
gzip -9n >"$documents/changelog.Debian.gz" <<EOF
blockd ($version) unstable; urgency=medium

  * Version $upstream; what changed is in changelog.gz.

 -- $(sed -n 's/^Maintainer: //p' "$source/deploy/deb/control")  $(date -u -R -d "@$SOURCE_DATE_EPOCH")
EOF
install -D -m 0644 "$source/deploy/deb/lintian-overrides" "$stage/usr/share/lintian/overrides/blockd"
manual() { # PROGRAM SECTION "what it is"
    "$source/deploy/deb/manual.sh" "$library/$1" "$2" "$3" "$upstream" >"$work/$1.$2" || fail "$1 --help makes no manual page"
    gzip -9nc "$work/$1.$2" >"$stage/usr/share/man/man$2/$1.$2.gz"
}
manual blockd 8 "serves crash-safe, checksummed virtual disks over NBD and iSCSI"
manual pfinspect 8 "reads the store of a stopped blockd"
manual pfcli 1 "administers blockd"
if "$library/pfcli" --help | grep -q '^  completion '; then
    install -d "$stage/usr/share/bash-completion/completions"
    "$library/pfcli" completion bash >"$stage/usr/share/bash-completion/completions/pfcli"
fi

# -- the package
install -d "$stage/DEBIAN"
sed -e "s/@VERSION@/$version/" -e "s/@ARCH@/$arch/" -e "s/@SIZE@/$(du -sk --apparent-size "$stage" | cut -f1)/" \
    "$source/deploy/deb/control" >"$stage/DEBIAN/control"
echo /etc/blockd/blockd.json >"$stage/DEBIAN/conffiles"
for script in postinst prerm postrm; do install -m 0755 "$source/deploy/deb/$script" "$stage/DEBIAN/$script"; done
(cd "$stage" && find . -path ./DEBIAN -prune -o -type f ! -path './etc/*' -printf '%P\0' | sort -z | xargs -0 md5sum) >"$stage/DEBIAN/md5sums"
find "$stage" -type d -exec chmod 0755 {} +
find "$documents" -type f -exec chmod 0644 {} +
find "$stage" -exec touch -h -d "@$SOURCE_DATE_EPOCH" {} +
package=$output/blockd_${version}_$arch.deb
dpkg-deb --root-owner-group "${compression[@]}" --build "$stage" "$package" >/dev/null
echo "$package"
