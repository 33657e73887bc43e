using System.CommandLine;
using System.Globalization;
using BlockServer.Core;
using BlockServer.Core.Api;

namespace BlockServer.Pfcli;

/// <summary>Snapshots: cut, look at, compare, go back to, delete.</summary>
internal static class SnapshotCommands
{
    private static readonly string[] Headings = ["Volume", "Name", "Size", "Used", "Exclusive", "Created", "Label", "Clones"];

    public static void AddTo(CommandSet commands)
    {
        AddCreate(commands);
        AddList(commands);
        AddDelete(commands);
        AddRollback(commands);
        AddDiff(commands);
    }

    /// <summary>The option that names a snapshot.</summary>
    public static Option<string> Snapshot(string description = "Name of the snapshot", bool required = true)
    {
        var option = new Option<string>("--snapshot_name", "-n") { Description = description, HelpName = "SNAPSHOT", Required = required };
        Inputs.CheckName(option);
        return option;
    }

    private static string PathOf(string volume, string snapshot) => $"{Inputs.PathOf(volume)}/snapshots/{Uri.EscapeDataString(snapshot)}";

    private static string[] Row(SnapshotEntry s) =>
    [
        s.Volume, s.Name, SizeText.Format(s.SizeBytes), Size(s.UsedBytes), Size(s.ExclusiveBytes),
        s.CreatedAt.ToString("u", CultureInfo.InvariantCulture), s.Label, string.Join(", ", s.Clones),
    ];

    private static string Size(ulong? bytes) => bytes is { } known ? SizeText.Format(known) : "";

    private static Option<string[]> Several(string description)
    {
        var volumes = new Option<string[]>("--volume_name", "-v") { Description = description, HelpName = "NAME", Required = true, Arity = ArgumentArity.OneOrMore };
        volumes.Validators.Add(result =>
        {
            foreach (var token in result.Tokens)
            {
                if (!VolumeName.IsValid(token.Value, out string? reason)) result.AddError($"'{token.Value}': {reason}");
            }
        });
        return volumes;
    }

    private static void AddCreate(CommandSet commands)
    {
        Option<string[]> volumes = Several("Name of the volume; several are cut at one moment");
        Option<string> name = Snapshot("Name of the snapshot, not in use by another one of these volumes");
        var clean = new Option<bool>("--clean") { Description = "What uses the volumes has been brought to rest (fsfreeze, a database's backup mode)" };
        commands.Add("create_snapshot", "Cuts a snapshot of one or several volumes", [volumes, name, clean], async (context, cancel) =>
        {
            var request = new CreateSnapshot(context.Get(name)!, context.Get(volumes)!, context.Get(clean));
            SnapshotList cut = await context.Client.ChangeAsync(
                HttpMethod.Post, "v1/snapshots", request, ApiJson.Default.CreateSnapshot, ApiJson.Default.SnapshotList, cancel);
            if (!context.Printer.TryJson(cut, ApiJson.Default.SnapshotList)) context.Printer.Table(Headings, [.. cut.Snapshots.Select(Row)]);
            return ExitCode.Done;
        },
        "pfcli create_snapshot -v db -n before-upgrade",
        "pfcli create_snapshot -v data -v journal -n nightly --clean    # one moment for both");
    }

    private static void AddList(CommandSet commands)
    {
        var volume = new Option<string?>("--volume_name", "-v") { Description = "Only this volume's", HelpName = "NAME" };
        var quick = new Option<bool>("--quick") { Description = "Without what each takes, for which all its metadata is read" };
        commands.Add("list_snapshot", "Lists snapshots with what they take", [volume, quick], async (context, cancel) =>
        {
            string path = context.Get(volume) is { } only ? Inputs.PathOf(only) + "/snapshots" : "v1/snapshots";
            SnapshotList list = await context.Client.GetAsync(
                path + (context.Get(quick) ? "" : "?usage=true"), ApiJson.Default.SnapshotList, cancel);
            if (context.Printer.TryJson(list, ApiJson.Default.SnapshotList)) return ExitCode.Done;
            context.Printer.Line($"{list.Snapshots.Count} snapshots returned.");
            context.Printer.Table(Headings, [.. list.Snapshots.Select(Row)]);
            return ExitCode.Done;
        },
        "pfcli list_snapshot -v db",
        "pfcli list_snapshot --quick --json");
    }

    private static void AddDelete(CommandSet commands)
    {
        Option<string> volume = Inputs.Volume();
        Option<string> name = Snapshot();
        var force = new Option<bool>("--force") { Description = "Also while clients read it" };
        var waiting = new Waiting(isHabit: true);
        commands.Add("delete_snapshot", "Deletes a snapshot; what only it needs is freed", [volume, name, force, .. waiting.Options], async (context, cancel) =>
        {
            string path = PathOf(context.Get(volume)!, context.Get(name)!);
            SnapshotEntry one = await context.Client.GetAsync(path, ApiJson.Default.SnapshotEntry, cancel);
            context.Confirm($"deleting snapshot {one.Volume}@{one.Name} (frees {Size(one.ExclusiveBytes)})");
            TaskInfo task = await context.Client.DeleteAsync($"{path}?uuid={one.Uuid}{(context.Get(force) ? "&force=true" : "")}", ApiJson.Default.TaskInfo, cancel);
            return await waiting.ConcludeAsync(context, task, cancel);
        },
        "pfcli delete_snapshot -v db -n before-upgrade --yes");
    }

    private static void AddRollback(CommandSet commands)
    {
        Option<string[]> volumes = Several("Name of the volume; several go back together, all or none");
        Option<string> name = Snapshot();
        var group = new Option<bool>("--group") { Description = "All volumes that were cut together with this snapshot go back" };
        var safety = new Option<string?>("--safety") { Description = "Name of the snapshot that keeps what the volume is now", HelpName = "SNAPSHOT" };
        var force = new Option<bool>("--force") { Description = "Also while clients are attached; they are cut off" };
        commands.Add("rollback_snapshot", "Makes volumes what their snapshot is, and keeps what they were as another snapshot", [volumes, name, group, safety, force], async (context, cancel) =>
        {
            string[] names = context.Get(volumes)!;
            string snapshot = context.Get(name)!;
            bool isGroup = context.Get(group);
            context.Confirm(isGroup ? $"replacing the content of every volume that was cut with {string.Join(", ", names)}@{snapshot} by that of its snapshot {snapshot}"
                : names.Length == 1 ? $"replacing the content of volume {names[0]} by that of its snapshot {snapshot}"
                : $"replacing the content of volumes {string.Join(", ", names)} by that of their snapshots {snapshot}");
            if (isGroup || names.Length > 1)
            {
                RollbackTogetherInfo all = await context.Client.ChangeAsync(
                    HttpMethod.Post, "v1/snapshots/rollback", new RollbackTogether(snapshot, names, isGroup, context.Get(safety), context.Get(force)),
                    ApiJson.Default.RollbackTogether, ApiJson.Default.RollbackTogetherInfo, cancel);
                if (!context.Printer.TryJson(all, ApiJson.Default.RollbackTogetherInfo))
                    context.Printer.Line($"Volumes {string.Join(", ", all.Volumes.Select(v => v.Name))} are what {snapshot} was; what they were is kept as {all.Safety[0].Name}.");
                return ExitCode.Done;
            }

            RollbackInfo back = await context.Client.ChangeAsync(
                HttpMethod.Post, PathOf(names[0], snapshot) + "/rollback",
                new RollbackSnapshot(context.Get(safety), context.Get(force)), ApiJson.Default.RollbackSnapshot, ApiJson.Default.RollbackInfo, cancel);
            if (!context.Printer.TryJson(back, ApiJson.Default.RollbackInfo))
                context.Printer.Line($"Volume {back.Volume.Name} is what {snapshot} was; what it was is kept as {back.Safety.Name}.");
            return ExitCode.Done;
        },
        "pfcli rollback_snapshot -v db -n before-upgrade --safety broken-upgrade",
        "pfcli rollback_snapshot -v data -v journal -n nightly    # both, or none",
        "pfcli rollback_snapshot -v data -n nightly --group       # and whatever was cut with it");
    }

    private static void AddDiff(CommandSet commands)
    {
        Option<string> volume = Inputs.Volume();
        var from = new Option<string>("--from") { Description = "The older snapshot", HelpName = "SNAPSHOT", Required = true };
        var to = new Option<string?>("--to") { Description = "The other snapshot (default: what is written now)", HelpName = "SNAPSHOT" };
        commands.Add("diff_snapshot", "Shows what was written or zeroed between two snapshots, or since one", [volume, from, to], async (context, cancel) =>
        {
            string path = $"{Inputs.PathOf(context.Get(volume)!)}/diff?from={Uri.EscapeDataString(context.Get(from)!)}"
                + (context.Get(to) is { } newer ? "&to=" + Uri.EscapeDataString(newer) : "");
            var ranges = new List<DiffRange>();
            ulong changed = 0;
            for (ulong? at = 0; at is { } offset;)
            {
                DiffInfo piece = await context.Client.GetAsync(
                    path + "&offset=" + offset.ToString(CultureInfo.InvariantCulture), ApiJson.Default.DiffInfo, cancel);
                ranges.AddRange(piece.Ranges);
                changed += piece.ChangedBytes;
                at = piece.NextOffsetBytes;
            }

            if (context.Printer.TryJson(new DiffInfo(ranges, changed, null), ApiJson.Default.DiffInfo)) return ExitCode.Done;
            context.Printer.Line($"{ranges.Count} ranges, {SizeText.Format(changed)} changed.");
            context.Printer.Table(["Offset", "Length"], [.. ranges.Select(r => new[]
            {
                r.OffsetBytes.ToString(CultureInfo.InvariantCulture), r.LengthBytes.ToString(CultureInfo.InvariantCulture),
            })]);
            return ExitCode.Done;
        },
        "pfcli diff_snapshot -v db --from monday --to tuesday",
        "pfcli diff_snapshot -v db --from monday --json");
    }
}
