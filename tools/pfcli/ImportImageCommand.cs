using System.CommandLine;
using BlockServer.Core.Api;
using BlockServer.Streams;

namespace BlockServer.Pfcli;

/// <summary>import_image: a file or a pipe becomes a volume, or brings an increment.</summary>
internal static class ImportImageCommand
{
    public static void AddTo(CommandSet commands)
    {
        Option<string> name = Inputs.Volume("Name of the new volume, or of the one that an increment is for");
        var input = new Option<string>("--input", "-i") { Description = "File or http(s) address to read; - is standard input", HelpName = "FILE|URL", Required = true };
        Option<string> format = ExportImageCommand.Choice("--format", "What it is; auto looks at it", "auto", ["auto", "stream", "raw", "qcow2"]);
        var sha256 = new Option<string?>("--sha256") { Description = "Refuse the file unless this is its SHA-256", HelpName = "HEX" };
        sha256.Validators.Add(result =>
        {
            if (result.Tokens.Count == 1 && (result.Tokens[0].Value.Length != 64 || !result.Tokens[0].Value.All(char.IsAsciiHexDigit)))
                result.AddError("--sha256 wants 64 hexadecimal digits");
        });
        var scratch = new Option<string>("--scratch")
        {
            Description = "Folder for what is fetched or converted", HelpName = "DIR", DefaultValueFactory = _ => Path.GetTempPath(),
        };
        Option<ulong> size = Inputs.Size("--size", "-s", "Size of the volume, for a raw image from a pipe", required: false);
        var disk = new Option<string?>("--disk") { Description = "Disk that a new volume must lie on", HelpName = "NAME|ID" };
        var keep = new Option<bool>("--keep") { Description = "When a pipe breaks off, keep what has come (a file always is)" };
        var resume = new Option<bool>("--resume") { Description = "Go on with an import that was interrupted" };
        var isImage = new Option<bool>("--image") { Description = "The new volume becomes an image: read-only for ever, others are made from it" };
        Option<bool> thin = Inputs.Thin();
        commands.Add("import_image", "Makes a volume from a stream or an image, or brings it up to date by an increment",
            [name, input, isImage, format, size, disk, thin, keep, resume, sha256, scratch],
            async (context, cancel) =>
            {
                string volume = context.Get(name)!;
                string wantedFormat = context.Get(format)!;
                using ImageFile image = await ImageFile.PrepareAsync(
                    context, context.Get(input)!, context.Get(sha256), context.Get(scratch)!, wantedFormat, cancel);
                using ImportSource source = ImportSource.Open(context.Host, image.Path);
                StreamCursor? from = null;
                if (context.Get(resume))
                {
                    ImportInfo import = (await Inputs.VolumeAsync(context, volume, cancel)).Import
                        ?? throw new CliException($"no import of {volume} was interrupted");
                    from = StreamCursor.TryParse(import.Cursor) ?? throw new CliException("this daemon's cursors are of another release");
                }

                await source.BeginAsync(image.IsConverted || wantedFormat == "qcow2" ? "raw" : wantedFormat, context.Get(size), from, cancel);
                string query = $"?keep={(source.IsFile || context.Get(keep) || from is not null ? "true" : "false")}{(from is null ? "" : "&resume=true")}";
                if (context.Get(disk) is { } wanted) query += $"&storeId={(await Inputs.DiskAsync(context, wanted, cancel)).Id}";
                if (context.Get(isImage)) query += "&image=true";
                if (context.IsGiven(thin)) query += context.Get(thin) ? "&thin=true" : "&thin=false";
                string path = Inputs.PathOf(volume) + "/stream";
                VolumeInfo made = await HandAsync(context, source, path + query, volume, from, cancel)
                    ?? await SendAsync(context, source, path + query, volume, from, cancel);
                return VolumeCommands.Show(context, made);
            },
            "pfcli import_image -v vm1 -i vm1-monday.stream",
            "pfcli import_image -v vm1 -i vm1-tuesday.stream",
            "pfcli import_image -v vm1 -i vm1-tuesday.stream --resume",
            "pfcli import_image -v vm2 -i debian-12.raw",
            "pfcli import_image -v vm3 -i https://images.example/debian-12.qcow2 --sha256 0f3a...",
            "pfcli import_image -v debian-12 -i debian-12.qcow2 --image",
            "ssh backup 'cat vm1-monday.stream' | pfcli import_image -v vm1 -i -");
    }

    /// <summary>The daemon of this machine reads the file itself; null: it cannot, and nothing was changed.</summary>
    private static async Task<VolumeInfo?> HandAsync(
        CommandContext context, ImportSource source, string path, string volume, StreamCursor? from, CancellationToken cancel)
    {
        using HandedTicket? ticket = source.File is { } file && context.FilesSocket is { } socket ? HandedTicket.TryHand(socket, file) : null;
        if (ticket is null) return null;
        var progress = new TransferProgress(context.Host, $"import {volume}", source.Header.SizeBytes, from?.OffsetBytes ?? 0, context.Printer.Json);
        using var ended = CancellationTokenSource.CreateLinkedTokenSource(cancel);
        Task watching = Task.CompletedTask;
        try
        {
            Task<VolumeInfo?> taking = TryAsync(() => context.Client.SendAsync(
                $"{path}&file={ticket.Text}&format={(source.IsRaw ? "raw" : "stream")}", StreamMedia.Type, source.SendHeaderAsync, ApiJson.Default.VolumeInfo, cancel));
            if (!context.Printer.Json) watching = WatchAsync(context, volume, progress, ended.Token);
            return await taking;
        }
        catch (CliException e) when (e.Code == "no-file")
        {
            return null; // another daemon's socket lies beside the token
        }
        catch (CliException e) when (e.InnerException is IOException)
        {
            throw await WhyAsync(context, volume, e, cancel);
        }
        finally
        {
            await ended.CancelAsync();
            await watching;
            progress.End();
        }
    }

    /// <summary>Shows how far the daemon is, until it is told to end.</summary>
    private static async Task WatchAsync(CommandContext context, string volume, TransferProgress progress, CancellationToken ended)
    {
        try
        {
            while (true)
            {
                await context.Host.Delay(TimeSpan.FromSeconds(1), ended);
                try
                {
                    progress.Show((await context.Client.GetAsync(Inputs.PathOf(volume) + "/import", ApiJson.Default.ImportInfo, ended)).OffsetBytes);
                }
                catch (CliException)
                {
                    // Not begun yet, or over: that is said elsewhere.
                }
            }
        }
        catch (OperationCanceledException)
        {
            // It is over.
        }
    }

    private static async Task<VolumeInfo> SendAsync(
        CommandContext context, ImportSource source, string path, string volume, StreamCursor? from, CancellationToken cancel)
    {
        // A refusal by the header alone comes before everything is sent.
        await TryAsync(() => context.Client.SendAsync(path + "&check=true", StreamMedia.Type, source.SendHeaderAsync, ApiJson.Default.VolumeInfo, cancel));
        var progress = new TransferProgress(context.Host, $"import {volume}", source.Header.SizeBytes, from?.OffsetBytes ?? 0, context.Printer.Json);
        try
        {
            return (await TryAsync(() => context.Client.SendAsync(
                path, StreamMedia.Type, (target, stop) => source.SendAsync(target, progress.Show, stop), ApiJson.Default.VolumeInfo, cancel)))!;
        }
        catch (CliException e) when (e.InnerException is HttpRequestException or IOException)
        {
            if (source.Fault is { } fault)
            {
                await GiveUpAsync(context, volume, cancel);
                throw new CliException(fault, inner: e);
            }

            throw await WhyAsync(context, volume, e, cancel);
        }
        finally
        {
            progress.End();
        }
    }

    private static async Task<VolumeInfo?> TryAsync(Func<Task<VolumeInfo?>> send)
    {
        try
        {
            return await send();
        }
        catch (Exception e) when (e is HttpRequestException or IOException)
        {
            throw new CliException($"the connection to blockd broke ({(e.InnerException ?? e).Message})", inner: e is IOException ? e : new IOException(e.Message, e));
        }
    }

    /// <summary>What was sent of a stream that is damaged is of no use; the daemon keeps it for a continuation until it is told.</summary>
    private static async Task GiveUpAsync(CommandContext context, string volume, CancellationToken cancel)
    {
        for (int i = 0; i < 100; i++)
        {
            try
            {
                await context.Client.DeleteAsync(Inputs.PathOf(volume) + "/import", cancel);
                return;
            }
            catch (CliException e) when (e.Status == 409)
            {
                await context.Host.Delay(TimeSpan.FromMilliseconds(100), cancel); // it has not noticed yet
            }
            catch (CliException e) when (e.Status == 404)
            {
                return;
            }
        }
    }

    /// <summary>The daemon refuses while we send: then its words may have been lost, and are asked for.</summary>
    private static async Task<CliException> WhyAsync(CommandContext context, string volume, CliException broken, CancellationToken cancel)
    {
        try
        {
            await context.Client.GetAsync(Inputs.PathOf(volume) + "/import", ApiJson.Default.ImportInfo, cancel);
            return new CliException($"{broken.Message}; go on with the same command and --resume", inner: broken);
        }
        catch (CliException e)
        {
            return e.Status == 404 ? broken : e;
        }
    }
}
