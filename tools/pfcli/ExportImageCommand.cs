using System.CommandLine;
using System.Globalization;
using BlockServer.Core;
using BlockServer.Core.Api;
using BlockServer.Streams;

namespace BlockServer.Pfcli;

/// <summary>export_image: a snapshot goes to a file or a pipe.</summary>
internal static class ExportImageCommand
{
    public static void AddTo(CommandSet commands)
    {
        Option<string> name = Inputs.Volume();
        Option<string> snapshot = SnapshotCommands.Snapshot("The snapshot to export; without it one is cut, and kept for a stream", required: false);
        var basis = new Option<string?>("--base") { Description = "Only what has changed since this older snapshot", HelpName = "SNAPSHOT" };
        var output = new Option<string>("--output", "-o") { Description = "File to write; - is standard output", HelpName = "FILE", Required = true };
        Option<string> format = Choice("--format", "stream (checked, can be incremental) or raw (a plain disk image, sparse)", "stream", ["stream", "raw"]);
        Option<string> compress = Choice("--compress", "How a stream is packed: lz4 or none", "lz4", ["lz4", "none"]);
        var resume = new Option<bool>("--resume") { Description = "Go on with a file that an interrupted export has left" };
        commands.Add("export_image", "Writes a snapshot of a volume to a file or a pipe", [name, snapshot, basis, output, format, compress, resume],
            async (context, cancel) =>
            {
                bool isRaw = context.Get(format) == "raw", toPipe = context.Get(output) == "-";
                if (isRaw && context.Get(basis) is not null)
                    throw new CliException("a raw image is always whole; leave --base out, or write a stream", ExitCode.Usage);
                if (toPipe && context.Get(resume)) throw new CliException("a pipe has no past; --resume needs a file", ExitCode.Usage);
                using ExportTarget target = ExportTarget.Open(context.Host, context.Get(output)!, isRaw, context.Get(resume));
                string volume = context.Get(name)!;
                bool isOurs = false;
                string? wanted = context.Get(snapshot), from = context.Get(basis);
                if (context.Get(resume))
                {
                    (wanted, from) = await NamesAsync(context, volume, target.Header!, wanted, cancel);
                    if (target.IsWhole) return Conclude(context, Summary(context, target, volume, wanted, from, 0), toPipe);
                }
                else if (wanted is null)
                {
                    wanted = await CutAsync(context, volume, cancel);
                    isOurs = true;
                }

                string query = $"?compress={(isRaw ? "none" : context.Get(compress))}"
                    + (from is null ? "" : "&base=" + Uri.EscapeDataString(from)) + (target.Cursor is { } cursor ? $"&cursor={cursor}" : "");
                string path = $"{Inputs.PathOf(volume)}/snapshots/{Uri.EscapeDataString(wanted)}/stream{query}";
                ulong received;
                try
                {
                    received = await FetchAsync(context, target, path, isRaw, $"export {volume}@{wanted}", cancel);
                }
                catch (CliException) when (target.Header is null)
                {
                    target.Remove();
                    throw;
                }
                catch (Exception e) when (!toPipe && e is IOException or HttpRequestException or OperationCanceledException)
                {
                    throw new CliException($"the export broke off ({e.Message}); go on with the same command and --resume", inner: e);
                }

                if (isOurs && isRaw) await context.Client.DeleteAsync($"{Inputs.PathOf(volume)}/snapshots/{Uri.EscapeDataString(wanted)}", cancel);
                int code = Conclude(context, Summary(context, target, volume, wanted, from, received), toPipe);
                if (isOurs && !isRaw && !toPipe) context.Printer.Line($"Snapshot {wanted} was cut and stays: the next increment can build on it (--base {wanted}).");
                return code;
            },
            "pfcli export_image -v vm1 -n monday -o vm1-monday.stream",
            "pfcli export_image -v vm1 -n tuesday --base monday -o vm1-tuesday.stream",
            "pfcli export_image -v vm1 -n tuesday --base monday -o - | ssh backup 'cat > vm1-tuesday.stream'",
            "pfcli export_image -v vm1 --format raw -o vm1.img");
    }

    /// <summary>An option with a few words to choose from.</summary>
    public static Option<string> Choice(string name, string description, string standard, string[] words)
    {
        var option = new Option<string>(name) { Description = description, HelpName = string.Join('|', words), DefaultValueFactory = _ => standard };
        option.AcceptOnlyFromAmong(words);
        return option;
    }

    /// <summary>The daemon of this machine writes the file itself; what it sends is written here otherwise.</summary>
    private static async Task<ulong> FetchAsync(CommandContext context, ExportTarget target, string path, bool isRaw, string what, CancellationToken cancel)
    {
        using HandedTicket? ticket = target.File is { } file && context.FilesSocket is { } socket ? HandedTicket.TryHand(socket, file) : null;
        if (ticket is not null)
        {
            try
            {
                using Stream report = await context.Client.OpenAsync($"{path}&file={ticket.Text}&format={(isRaw ? "raw" : "stream")}", cancel);
                return await target.FollowAsync(report, what, context.Printer.Json, cancel);
            }
            catch (CliException e) when (e.Code == "no-file")
            {
                // Another daemon's socket lies beside the token.
            }
        }

        using Stream source = await context.Client.OpenAsync(path, cancel);
        return await target.TakeAsync(source, what, context.Printer.Json, cancel);
    }

    private static async Task<string> CutAsync(CommandContext context, string volume, CancellationToken cancel)
    {
        string name = "export-" + context.Host.Clock.GetUtcNow().ToString("yyyyMMdd-HHmmss", CultureInfo.InvariantCulture);
        string free = name;
        for (int i = 2; ; i++)
        {
            try
            {
                await context.Client.ChangeAsync(
                    HttpMethod.Post, "v1/snapshots", new CreateSnapshot(free, [volume]), ApiJson.Default.CreateSnapshot, ApiJson.Default.SnapshotList, cancel);
                return free;
            }
            catch (CliException e) when (e.Status == 409 && i < 10)
            {
                free = string.Create(CultureInfo.InvariantCulture, $"{name}-{i}"); // two within a second
            }
        }
    }

    /// <summary>The names, today, of the snapshots that a stream was made of.</summary>
    private static async Task<(string Snapshot, string? Base)> NamesAsync(
        CommandContext context, string volume, StreamHeader header, string? wanted, CancellationToken cancel)
    {
        SnapshotList list = await context.Client.GetAsync(Inputs.PathOf(volume) + "/snapshots", ApiJson.Default.SnapshotList, cancel);
        string Named(Guid? id) => list.Snapshots.FirstOrDefault(s => s.Uuid == id)?.Name
            ?? throw new CliException($"the snapshot of the export that was begun ({id}) is not there any more; begin anew without --resume");
        string target = Named(header.Target);
        if (wanted is not null && wanted != target)
            throw new CliException($"the file was begun with snapshot {target}, not {wanted}; leave --snapshot_name out, or choose another file");
        return (target, header.Base is null ? null : Named(header.Base));
    }

    private static ExportSummary Summary(CommandContext _, ExportTarget target, string volume, string snapshot, string? basis, ulong received) => new(
        volume, snapshot, basis, target.IsRaw ? "raw" : "stream", target.Name, target.Header!.SizeBytes, target.DataBytes, received);

    private static int Conclude(CommandContext context, ExportSummary done, bool toPipe)
    {
        if (toPipe) return ExitCode.Done;
        if (!context.Printer.TryJson(done, ApiJson.Default.ExportSummary))
        {
            context.Printer.Line($"Exported {done.Volume}@{done.Snapshot}{(done.Base is null ? "" : $" since {done.Base}")} to {done.File}: "
                + $"{SizeText.Format(done.DataBytes)} of data, {SizeText.Format(done.SentBytes)} sent.");
        }

        return ExitCode.Done;
    }
}
