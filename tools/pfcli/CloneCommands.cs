using System.CommandLine;
using BlockServer.Core.Api;

namespace BlockServer.Pfcli;

/// <summary>Clones: make one, and let it build on nothing.</summary>
internal static class CloneCommands
{
    public static void AddTo(CommandSet commands)
    {
        AddClone(commands);
        AddFlatten(commands);
    }

    private static void AddClone(CommandSet commands)
    {
        Option<string> source = Inputs.Volume("Name of the volume that is cloned");
        Option<string> snapshot = SnapshotCommands.Snapshot("Clone this snapshot of it (default: one is cut first)", required: false);
        var name = new Option<string>("--clone_name", "-c") { Description = "Name of the clone", HelpName = "NAME", Required = true };
        Inputs.CheckName(name);
        Option<ulong> size = Inputs.Size("--size", "-s", "Size, at least the snapshot's (default: the snapshot's)", required: false);
        var description = new Option<string?>("--description") { Description = "Free text", HelpName = "TEXT" };
        var key = new Option<string?>("--idempotency-key")
        {
            Description = "Repeating the same request with the same key answers the same volume", HelpName = "KEY",
        };
        Option<bool> thin = Inputs.Thin();
        commands.Add("clone_volume", "Makes a volume with the content of another one or of its snapshot, at once", [source, snapshot, name, size, thin, description, key], async (context, cancel) =>
        {
            var request = new CloneVolume(
                context.Get(name)!, context.Get(snapshot), context.IsGiven(size) ? context.Get(size) : null, null, context.Get(description),
                context.Get(key) ?? Guid.NewGuid().ToString("N"), Thin: context.IsGiven(thin) ? context.Get(thin) : null);
            return VolumeCommands.Show(context, await context.Client.ChangeAsync(
                HttpMethod.Post, Inputs.PathOf(context.Get(source)!) + "/clone", request, ApiJson.Default.CloneVolume, ApiJson.Default.VolumeInfo, cancel));
        },
        "pfcli clone_volume -v db -c db-test                       # from what db is now",
        "pfcli clone_volume -v db -n before-upgrade -c db-old -s 256g");
    }

    private static void AddFlatten(CommandSet commands)
    {
        Option<string> name = Inputs.Volume("Name of the clone");
        var waiting = new Waiting(isHabit: true);
        commands.Add("flatten_volume", "Copies what a clone shares with its base, so that it builds on nothing", [name, .. waiting.Options], async (context, cancel) =>
        {
            TaskInfo task = await context.Client.ChangeAsync(
                HttpMethod.Post, Inputs.PathOf(context.Get(name)!) + "/flatten", new FlattenVolume(), ApiJson.Default.FlattenVolume, ApiJson.Default.TaskInfo, cancel);
            return await waiting.ConcludeAsync(context, task, cancel);
        },
        "pfcli flatten_volume -v db-test --no-wait");
    }
}
