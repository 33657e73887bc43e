#!/bin/sh
# Makes a manual page of what a program says to --help, and of each of its commands.
#   manual.sh PROGRAM SECTION "what it is" VERSION
set -eu
program=$1
name=$(basename "$program")
date=$(date -u -d "@${SOURCE_DATE_EPOCH:-$(date +%s)}" +%Y-%m-%d)

# Reads one --help; "full" takes its parts as sections of the page, "command" as paragraphs of one command.
page() {
    awk -v mode="$1" '
        function text(s) { gsub(/\\/, "\\e", s); gsub(/-/, "\\-", s); if (s ~ /^[.\x27]/) s = "\\&" s; return s }
        function heading(s) { print (mode == "full" ? ".SH " toupper(s) : ".PP\n.B " s) }
        { sub(/[ \t]+$/, "") }
        /^[A-Z][a-z]+:$/ { part = substr($0, 1, length($0) - 1); if (part != "Description") heading(part); else if (mode == "full") print ".SH DESCRIPTION"; next }
        $0 == "" { if (part == "Description") print ".PP"; next }
        part == "Description" { sub(/^  /, ""); print text($0); next }
        part == "Usage" || part == "Examples" { sub(/^ +/, ""); print ".RS\n.nf\n" text($0) "\n.fi\n.RE"; next }
        {
            # "  what it is called   what it means"; a line without a second part goes on with the one before.
            line = $0; sub(/^  /, "", line)
            if (match(line, /   */) && substr(line, 1, 1) != " ") {
                print ".TP\n.B " text(substr(line, 1, RSTART - 1)) "\n" text(substr(line, RSTART + RLENGTH))
            } else { sub(/^ +/, "", line); print text(line) }
        }'
}

printf '.TH %s %s %s "%s %s"\n' "$(printf '%s' "$name" | tr '[:lower:]' '[:upper:]')" "$2" "$date" "$name" "$4"
printf '.SH NAME\n%s \\- %s\n' "$name" "$(printf '%s' "$3" | sed 's/-/\\-/g')"
help=$("$program" --help)
printf '%s\n' "$help" | page full
commands=$(printf '%s\n' "$help" | awk '/^Commands:/ { on = 1; next } /^[^ ]/ { on = 0 } on && /^  [a-z]/ { print $1 }')
[ -z "$commands" ] || printf '.SH THE COMMANDS ONE BY ONE\n'
for command in $commands; do
    printf '.SS %s\n' "$command"
    "$program" "$command" --help | page command
done
printf '.SH SEE ALSO\n'
case $name in
    blockd) printf '.BR pfcli (1),\n.BR pfinspect (8),\n.BR nbdinfo (1)\n' ;;
    *) printf '.BR blockd (8)\n' ;;
esac
printf '.PP\nMore is in /usr/share/doc/blockd.\n'
