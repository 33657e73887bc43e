using System.CommandLine;
using System.Globalization;
using BlockServer.Client;
using BlockServer.Core;
using BlockServer.Core.Api;

namespace BlockServer.Pfcli;

/// <summary>Append-only volumes, as PureFlash calls them: append only files.</summary>
internal static class AofCommands
{
    private const int ChunkBytes = 1 << 20;

    // Appends that are on their way while the next ones are read.
    private const int UnderMax = 512;

    public static void AddTo(CommandSet commands)
    {
        AddCreate(commands);
        AddAppend(commands);
        AddRead(commands);
        AddFollow(commands);
        AddList(commands);
        AddStat(commands);
        AddRename(commands);
        AddSeal(commands);
        AddDelete(commands);
    }

    private static void AddCreate(CommandSet commands)
    {
        Option<string> name = Inputs.Volume("Name of the append-only volume");
        Inputs.CheckName(name);
        Option<ulong> size = Inputs.Size("--size", "-s", "It never becomes longer than this (default: as long as a volume may be)", required: false);
        var reserve = new Option<bool>("--reserve") { Description = "Promise a new one room for all of its --size; else that is only a limit" };
        commands.Add("aof_create", "Opens an append-only volume, and creates it if there is none of that name", [name, size, reserve], async (context, cancel) =>
        {
            ulong? bytes = context.IsGiven(size) ? context.Get(size) : null;
            if (!context.Get(reserve)) return Show(context, await Asked(context.Blockd.OpenAofAsync(context.Get(name)!, bytes, cancel)));
            if (bytes is null) throw new CliException("--reserve needs --size: room for how much?", ExitCode.Usage);
            return Show(context, await context.Client.ChangeAsync(
                HttpMethod.Post, "v1/aof", new OpenAof(context.Get(name)!, bytes, Thin: false), ApiJson.Default.OpenAof, ApiJson.Default.AofInfo, cancel));
        },
            "pfcli aof_create -v events",
            "pfcli aof_create -v events -s 10g               # never longer than 10 GiB",
            "pfcli aof_create -v events -s 10g --reserve     # and that room is promised");
    }

    private static void AddAppend(CommandSet commands)
    {
        Option<string> name = Inputs.Volume("Name of the append-only volume");
        var file = new Option<string?>("--file", "-f") { Description = "File with the bytes (default: standard input)", HelpName = "FILE" };
        var whole = new Option<bool>("--lines") { Description = "Every line is an append of its own, as it comes" };
        var client = new Option<Guid?>("--client") { Description = "Identity of the client, a UUID: for a repeat of what may have landed", HelpName = "UUID" };
        var sequence = new Option<ulong?>("--sequence") { Description = "Number of the first append of that client (default: 1)", HelpName = "N" };
        commands.Add("aof_append", "Appends bytes, exactly once: whole up to 32 MiB, durable when it ends", [name, file, whole, client, sequence], async (context, cancel) =>
        {
            if (context.Get(sequence) is not null && context.Get(client) is null) throw new CliException("--sequence needs --client", ExitCode.Usage);
            if (context.Get(sequence) == 0) throw new CliException("--sequence begins with 1", ExitCode.Usage);
            await using Stream input = context.Get(file) is { } path ? OpenFile(path) : context.Host.OpenIn();
            var options = new AofWriterOptions { Client = context.Get(client) ?? Guid.Empty, NextSequence = context.Get(sequence) ?? 1 };
            long bytes = 0;
            int count = 0;
            ulong first = 0;
            await Asked(Appending());
            if (count == 0) throw new CliException("there is nothing to append: the input is empty");
            if (!context.Printer.TryJson(new AppendSummary(first, (ulong)bytes, count), ApiJson.Default.AppendSummary))
                context.Printer.Line($"{bytes} bytes appended at offset {first} in {count} appends");
            return ExitCode.Done;

            async Task<int> Appending()
            {
                await using var writer = new AofWriter(context.Blockd, context.Get(name)!, options);
                // The next ones are sent while these become durable.
                var under = new Queue<(Task<ulong> Offset, int Bytes)>();
                long underBytes = 0;
                await foreach (byte[] piece in context.Get(whole) ? LinesAsync(input, cancel) : WholeAsync(input, cancel))
                {
                    under.Enqueue((writer.AppendAsync(piece, cancel), piece.Length));
                    underBytes += piece.Length;
                    while (under.Count > UnderMax || underBytes > Units.RequestBytesMax || (under.Count > 0 && under.Peek().Offset.IsCompleted)) await EndOneAsync();
                }

                while (under.Count > 0) await EndOneAsync();
                return 0;

                async Task EndOneAsync()
                {
                    (Task<ulong> offset, int length) = under.Dequeue();
                    ulong at = await offset;
                    if (count++ == 0) first = at;
                    bytes += length;
                    underBytes -= length;
                }
            }
        },
        "date | pfcli aof_append -v events",
        "pfcli aof_append -v events -f batch.json",
        "tail -f access.log | pfcli aof_append -v events --lines");
    }

    private static void AddRead(CommandSet commands)
    {
        Option<string> name = Inputs.Volume("Name of the append-only volume");
        var offset = new Option<ulong>("--offset", "-o") { Description = "Where to begin, in bytes", HelpName = "BYTES" };
        var length = new Option<ulong?>("--length", "-l") { Description = "At most so many bytes (default: to the end)", HelpName = "BYTES" };
        commands.Add("aof_read", "Writes the bytes of an append-only volume to standard output", [name, offset, length], async (context, cancel) =>
        {
            ulong at = context.Get(offset), left = context.Get(length) ?? ulong.MaxValue;
            await using Stream output = context.Host.OpenOut();
            while (left > 0)
            {
                AofChunk chunk = await Asked(context.Blockd.ReadAofAsync(context.Get(name)!, at, (int)Math.Min(left, ChunkBytes), cancel: cancel));
                if (chunk.Bytes.Length == 0) break;
                await output.WriteAsync(chunk.Bytes, cancel);
                at += (ulong)chunk.Bytes.Length;
                left -= (ulong)chunk.Bytes.Length;
            }

            await output.FlushAsync(cancel);
            return ExitCode.Done;
        },
        "pfcli aof_read -v events > events.bin",
        "pfcli aof_read -v events -o 4096 -l 100 | xxd");
    }

    private static void AddFollow(CommandSet commands)
    {
        Option<string> name = Inputs.Volume("Name of the append-only volume");
        var offset = new Option<ulong?>("--offset", "-o") { Description = "Where to begin, in bytes (default: at its end)", HelpName = "BYTES" };
        commands.Add("aof_follow", "Writes what is appended to standard output, as it becomes durable, until the volume is sealed", [name, offset], async (context, cancel) =>
        {
            ulong at = context.Get(offset) ?? (await Asked(context.Blockd.StatAofAsync(context.Get(name)!, cancel))).LengthBytes;
            await using Stream output = context.Host.OpenOut();
            return await Asked(Following());

            async Task<int> Following()
            {
                await foreach (AofChunk chunk in context.Blockd.FollowAofAsync(context.Get(name)!, at, cancel))
                {
                    await output.WriteAsync(chunk.Bytes, cancel);
                    await output.FlushAsync(cancel);
                }

                return ExitCode.Done;
            }
        },
        "pfcli aof_follow -v events",
        "pfcli aof_follow -v events -o 0 | grep error      # from the begin");
    }

    private static void AddList(CommandSet commands) => commands.Add("aof_list", "Shows the append-only volumes", [], async (context, cancel) =>
    {
        var list = new AofList(await Asked(context.Blockd.ListAofAsync(cancel)));
        if (context.Printer.TryJson(list, ApiJson.Default.AofList)) return ExitCode.Done;
        context.Printer.Line($"{list.Volumes.Count} append-only volumes returned.");
        context.Printer.Table(["Id", "Name", "Length", "Max size", "Sealed"],
        [
            .. list.Volumes.Select(v => new[]
            {
                v.Id.ToString(CultureInfo.InvariantCulture), v.Name, v.LengthBytes.ToString(CultureInfo.InvariantCulture), SizeText.Format(v.SizeBytesMax), v.Sealed ? "yes" : "no",
            }),
        ]);
        return ExitCode.Done;
    }, "pfcli aof_list", "pfcli --json aof_list");

    private static void AddStat(CommandSet commands)
    {
        Option<string> name = Inputs.Volume("Name of the append-only volume");
        commands.Add("aof_stat", "Shows length and state of an append-only volume; exit code 1 when there is none", [name], async (context, cancel) =>
            Show(context, await Asked(context.Blockd.StatAofAsync(context.Get(name)!, cancel))),
            "pfcli aof_stat -v events");
    }

    private static void AddRename(CommandSet commands)
    {
        Option<string> name = Inputs.Volume("Name of the append-only volume");
        var newName = new Option<string>("--new_name", "-n") { Description = "The name that it gets", HelpName = "NAME", Required = true };
        Inputs.CheckName(newName);
        var replace = new Option<bool>("--replace") { Description = "An append-only volume that has the name gives way, at the same moment" };
        commands.Add("aof_rename", "Gives an append-only volume another name", [name, newName, replace], async (context, cancel) =>
        {
            if (context.Get(replace)) context.Confirm($"replacing '{context.Get(newName)}' by '{context.Get(name)}'");
            return Show(context, await Asked(context.Blockd.RenameAofAsync(context.Get(name)!, context.Get(newName)!, context.Get(replace), cancel)));
        },
        "pfcli aof_rename -v events.new -n events --replace --yes");
    }

    private static void AddSeal(CommandSet commands)
    {
        Option<string> name = Inputs.Volume("Name of the append-only volume");
        commands.Add("aof_seal", "Seals an append-only volume: it takes nothing more, for ever", [name], async (context, cancel) =>
        {
            context.Confirm($"sealing '{context.Get(name)}' for ever");
            return Show(context, await Asked(context.Blockd.SealAofAsync(context.Get(name)!, cancel)));
        },
        "pfcli aof_seal -v events-2026-10 --yes");
    }

    private static void AddDelete(CommandSet commands)
    {
        Option<string> name = Inputs.Volume("Name of the append-only volume");
        commands.Add("aof_delete", "Deletes an append-only volume and what it holds", [name], async (context, cancel) =>
        {
            AofInfo info = await Asked(context.Blockd.StatAofAsync(context.Get(name)!, cancel));
            context.Confirm($"deleting '{info.Name}' with {info.LengthBytes} bytes");
            await Asked(Deleting());
            context.Printer.Line($"Append-only volume {info.Name} deleted.");
            return ExitCode.Done;

            async Task<int> Deleting()
            {
                await context.Blockd.DeleteAofAsync(info.Name, info.Id, cancel);
                return 0;
            }
        },
        "pfcli aof_delete -v events --yes");
    }

    private static int Show(CommandContext context, AofInfo info)
    {
        if (!context.Printer.TryJson(info, ApiJson.Default.AofInfo))
            context.Printer.Line($"{info.Name}: {info.LengthBytes} bytes, at most {SizeText.Format(info.SizeBytesMax)}{(info.Sealed ? ", sealed" : "")}, {info.Clients} clients known");
        return ExitCode.Done;
    }

    /// <summary>What the daemon refuses is said as every other refusal.</summary>
    private static async Task<T> Asked<T>(Task<T> asked)
    {
        try
        {
            return await asked;
        }
        catch (BlockdException e)
        {
            string text = e.Status == 401 ? e.Message + "; give the --token-file of this daemon" : e.Message;
            throw new CliException(e.Status == 0 ? text : $"{text} [{e.Code}]", ExitCode.Failed, e.Status, e);
        }
    }

    private static FileStream OpenFile(string path)
    {
        try
        {
            return new FileStream(path, FileMode.Open, FileAccess.Read);
        }
        catch (Exception e) when (e is IOException or UnauthorizedAccessException)
        {
            throw new CliException($"'{path}' cannot be read: {e.Message}", inner: e);
        }
    }

    /// <summary>All of the input: one append up to 32 MiB, what is more in pieces of that.</summary>
    private static async IAsyncEnumerable<byte[]> WholeAsync(Stream input, [System.Runtime.CompilerServices.EnumeratorCancellation] CancellationToken cancel)
    {
        var buffer = new byte[ChunkBytes];
        int length = 0;
        while (true)
        {
            if (length == buffer.Length && length < Units.RequestBytesMax) Array.Resize(ref buffer, Math.Min(2 * length, Units.RequestBytesMax));
            int got = await input.ReadAsync(buffer.AsMemory(length), cancel);
            length += got;
            if (length > 0 && (got == 0 || length == Units.RequestBytesMax))
            {
                yield return buffer[..length];
                length = 0;
            }

            if (got == 0) yield break;
        }
    }

    /// <summary>Line by line, each with its end; the last one as it is.</summary>
    private static async IAsyncEnumerable<byte[]> LinesAsync(Stream input, [System.Runtime.CompilerServices.EnumeratorCancellation] CancellationToken cancel)
    {
        var buffer = new byte[ChunkBytes];
        int start = 0, length = 0;
        while (true)
        {
            int end;
            while ((end = buffer.AsSpan(start, length - start).IndexOf((byte)'\n')) >= 0)
            {
                yield return buffer[start..(start + end + 1)];
                start += end + 1;
            }

            buffer.AsSpan(start, length - start).CopyTo(buffer);
            (start, length) = (0, length - start);
            if (length == buffer.Length) throw new CliException($"a line is longer than {SizeText.Format(ChunkBytes)}; append the file as a whole, without --lines");
            int got = await input.ReadAsync(buffer.AsMemory(length), cancel);
            if (got == 0) break;
            length += got;
        }

        if (length > 0) yield return buffer[..length];
    }
}
