#!/bin/bash
# Installs what the tests need (only what is missing), builds everything, runs every test project.
# A suite that hangs is ended after its time and counts as failed. What failed is listed at the end with the command that
# runs it alone. The last line is "N passed, N failed, N skipped"; the exit code is non-zero when anything failed.
set -u -o pipefail
cd "$(dirname "$0")" || exit 1
export DOTNET_CLI_TELEMETRY_OPTOUT=1 DOTNET_NOLOGO=1
export BLOCKSERVER_ROOT="$PWD"

passed=0
failed=0
skipped=0

failures=()

finish() {
    if [ ${#failures[@]} -gt 0 ]; then
        echo "failed:"
        printf '  %s\n' "${failures[@]}"
    fi
    echo "$((SECONDS / 60)) min $((SECONDS % 60)) s"
    echo "$passed passed, $failed failed, $skipped skipped"
    [ "$failed" -eq 0 ]
    exit
}

refuse() {
    echo "test.sh: $1" >&2
    failures+=("$1")
    failed=$((failed + 1))
}

# package:file that shows that it is there
needed=(
    libnbd-bin:/usr/bin/nbdcopy
    python3-libnbd:/usr/lib/python3/dist-packages/nbd.py
    openssl:/usr/bin/openssl
    qemu-utils:/usr/bin/qemu-img
    qemu-block-extra:/usr/lib/$(uname -m)-linux-gnu/qemu/block-iscsi.so
    libiscsi-bin:/usr/bin/iscsi-ls
    fio:/usr/bin/fio
    e2fsprogs:/sbin/mkfs.ext4
    qemu-system-x86:/usr/bin/qemu-system-x86_64
    busybox-static:/bin/busybox
    nbd-client:/sbin/nbd-client
    cpio:/bin/cpio
    libsqlite3-0:/usr/lib/$(uname -m)-linux-gnu/libsqlite3.so.0
    liblz4-1:/usr/lib/$(uname -m)-linux-gnu/liblz4.so.1
    debootstrap:/usr/sbin/debootstrap
    systemd-container:/usr/bin/systemd-nspawn
    lintian:/usr/bin/lintian
)
missing=()
for entry in "${needed[@]}"; do
    [ -e "${entry#*:}" ] || missing+=("${entry%%:*}")
done
if [ ${#missing[@]} -gt 0 ]; then
    echo "test.sh: installing ${missing[*]}"
    sudo=()
    [ "$(id -u)" -eq 0 ] || sudo=(sudo)
    { "${sudo[@]}" env DEBIAN_FRONTEND=noninteractive apt-get update -qq &&
        "${sudo[@]}" env DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends "${missing[@]}"; } ||
        refuse "could not install ${missing[*]}; the tests that need them will fail"
fi

if ! dotnet build BlockServer.sln -c Release -v q --nologo; then
    refuse "the build failed"
    finish
fi
if [ -x ./start.sh ] && ! ./start.sh --build; then
    refuse "./start.sh --build failed"
fi

log=$(mktemp)
trap 'rm -f "$log"' EXIT
# What fails fast comes first. Behind each suite the minutes after which it hangs: many times what it takes on two cores.
for suite in tidy:5 unit:15 fuzz:15 interop:20 recovery:20 simulation:40; do
    name=${suite%:*}
    minutes=${suite#*:}
    [ -e "tests/$name" ] || continue
    echo "== tests/$name"
    began=$SECONDS
    # Time-out ends the whole process group: the suite and every daemon and guest that it started.
    timeout --kill-after=20 "${minutes}m" dotnet run -c Release --no-build --project "tests/$name" 2>&1 | tee "$log"
    code=${PIPESTATUS[0]}
    again="dotnet run -c Release --project tests/$name --"
    sed -i 's/\x1b\[[0-9;]*m//g' "$log"
    while read -r test; do
        failures+=("$again -method '$test'")
    done < <(sed -nE 's/^ *([^ (]+).* \[FAIL\]$/\1/p' "$log" | sort -u)
    [ "$name" != interop ] || [ ! -e out/iscsi-matrix.txt ] || grep -E '^[0-9a-z]+: |^[0-9]+ s$' out/iscsi-matrix.txt
    echo "== tests/$name: $((SECONDS - began)) s"
    if [ "$code" -eq 124 ] || [ "$code" -eq 137 ]; then
        refuse "tests/$name did not end within $minutes minutes; alone: $again -showliveoutput"
        continue
    fi
    # xunit: "Name  Total: 7, Errors: 0, Failed: 0, Skipped: 0, Not Run: 0, Time: 0.1s", or only "Total: 0"
    summary=$(grep -E ' Total: [0-9]+' "$log" | tail -n 1)
    if [ -z "$summary" ]; then
        refuse "tests/$name printed no summary (exit code $code); alone: $again"
        continue
    fi
    field() { sed -nE "s/.*$1: *([0-9]+).*/\1/p" <<<"$summary"; }
    total=$(field Total)
    errors=$(field Errors)
    bad=$(field Failed)
    skip=$(field Skipped)
    bad=$((${bad:-0} + ${errors:-0}))
    skip=${skip:-0}
    good=$((total - bad - skip))
    [ "$good" -ge 0 ] || good=0
    passed=$((passed + good))
    failed=$((failed + bad))
    skipped=$((skipped + skip))
    if [ "$code" -ne 0 ] && [ "$bad" -eq 0 ]; then
        refuse "tests/$name ended with exit code $code though no test failed; alone: $again"
    elif [ "$total" -eq 0 ]; then
        refuse "tests/$name ran no test; alone: $again"
    fi
done
finish
