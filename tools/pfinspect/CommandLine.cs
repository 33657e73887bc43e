using System.CommandLine;
using System.CommandLine.Invocation;
using System.Globalization;
using System.Text.Json;
using System.Text.Json.Serialization.Metadata;
using BlockServer.Core;
using BlockServer.Storage;

namespace BlockServer.Pfinspect;

/// <summary>pfinspect's commands. Exit code 0: done and sound; 1: refused, failed, or the store is not sound; 2: wrong usage.</summary>
public static class CommandLine
{
    /// <summary>Runs one command line. Throws nothing.</summary>
    public static int Run(IReadOnlyList<string> args, TextWriter output, TextWriter error)
    {
        try
        {
            RootCommand root = Build(output);
            ParseResult parsed = root.Parse(args, new ParserConfiguration { ResponseFileTokenReplacer = null });
            if (parsed.Action is ParseErrorAction or null)
            {
                string fault = parsed.Errors.Count > 0 ? parsed.Errors[0].Message.TrimEnd('.') : "no command was given";
                return Fail(error, fault + "; see pfinspect --help", 2);
            }

            return parsed.Invoke(new InvocationConfiguration { Output = output, Error = error, EnableDefaultExceptionHandler = false });
        }
        catch (InspectException e)
        {
            return Fail(error, e.Message, 1);
        }
        catch (IOException e)
        {
            return Fail(error, e.Message, 1);
        }
#pragma warning disable CA1031 // Whatever a damaged store holds, an operator gets one line and an exit code.
        catch (Exception e)
#pragma warning restore CA1031
        {
            return Fail(error, $"a fault in pfinspect itself ({e.GetType().Name}: {e.Message}); please report it", 1);
        }
    }

    private static RootCommand Build(TextWriter output)
    {
        var root = new RootCommand("Reads a BlockServer store that no daemon has open; changes nothing.");
        var json = new Option<bool>("--json") { Description = "Write JSON with stable names, for scripts", Recursive = true };
        root.Options.Add(json);
        var volume = new Argument<string>("volume") { Description = "Name or id of the volume, or VOLUME@SNAPSHOT" };

        void Add(string name, string description, Argument? more, Func<StoreFile, ParseResult, bool, int> run)
        {
            var command = new Command(name, description);
            var store = new Argument<string>("store") { Description = "File or block device that holds the store" };
            command.Arguments.Add(store);
            if (more is not null) command.Arguments.Add(more);
            command.SetAction(parsed =>
            {
                using StoreFile file = StoreFile.Open(parsed.GetValue(store)!);
                return run(file, parsed, parsed.GetValue(json));
            });
            root.Subcommands.Add(command);
        }

        Add("superblock", "Shows the store's root and its four copies", null, (file, _, asJson) => ShowSuperblock(output, file, asJson));
        Add("log", "Dumps the log that recovery would replay", null, (file, _, asJson) => ShowLog(output, file, asJson));
        Add("volumes", "Lists the volumes as recovery would find them", null, (file, _, asJson) => ShowVolumes(output, file, asJson));
        Add("layers", "Shows the tree of snapshots and clones, and what each holds alone", null, (file, _, asJson) => ShowLayers(output, file, asJson));
        Add("map", "Shows where a volume's blocks lie", volume, (file, parsed, asJson) => ShowMap(output, file, parsed.GetValue(volume)!, asJson));
        Add("badblocks", "Lists the blocks that the disk did not take or keep", null, (file, _, asJson) => ShowBadBlocks(output, file, asJson));
        Add("check", "Checks every invariant that a closed store can show", null, (file, _, asJson) => ShowCheck(output, file, false, asJson));
        Add("verify", "Checks, and verifies every checksum of metadata and data", null, (file, _, asJson) => ShowCheck(output, file, true, asJson));
        return root;
    }

    private static int ShowSuperblock(TextWriter output, StoreFile file, bool asJson)
    {
        StoreImage image = StoreImage.OpenRoot(file);
        Superblock s = image.Superblock;
        var report = new SuperblockReport(
            file.Path, s.StoreUuid, s.ClusterUuid, s.IsClean, s.Geometry.TotalBytes, (ulong)s.Geometry.RingPages * Units.BlockBytes,
            s.Geometry.SlotCount, s.SlotHighWater, s.Geometry.DataStart, s.Geometry.DataEnd, s.Incarnation, s.StartLsn, s.Sequence, image.Copies);
        if (TryJson(output, asJson, report, InspectJson.Default.SuperblockReport)) return 0;
        Pair(output, "store", report.StoreUuid);
        Pair(output, "cluster", report.ClusterUuid);
        Pair(output, "clean", report.Clean ? "yes" : "no");
        Pair(output, "size", SizeText.Format(report.TotalBytes));
        Pair(output, "ring", SizeText.Format(report.RingBytes));
        Pair(output, "slots", $"{report.SlotHighWater} ever used of {report.SlotCount}");
        Pair(output, "data", $"blocks {report.DataStart} to {report.DataEnd - 1}, {SizeText.Format((ulong)s.Geometry.DataBlocks * Units.BlockBytes)}");
        Pair(output, "incarnation", report.Incarnation);
        Pair(output, "start lsn", report.StartLsn);
        Pair(output, "sequence", report.Sequence);
        foreach (SuperblockCopy copy in report.Copies)
            Pair(output, $"copy {copy.Copy}", copy.Fault ?? (copy.Chosen ? "good" : $"old, sequence {copy.Sequence}"));
        return 0;
    }

    private static int ShowLog(TextWriter output, StoreFile file, bool asJson)
    {
        StoreImage image = StoreImage.Load(file, keepLog: true);
        var report = new LogReport(
            image.Superblock.Incarnation, image.TailLsn, image.DurableLsn, image.EndLsn,
            image.PagesOfThisIncarnation, image.PagesOfOthers, image.PagesUnreadable, image.Log);
        if (TryJson(output, asJson, report, InspectJson.Default.LogReport)) return 0;
        Line(output, $"incarnation {report.Incarnation}, tail {report.TailLsn}, durable {report.DurableLsn}, end {report.EndLsn}");
        Line(output, $"pages: {report.PagesOfThisIncarnation} of this incarnation, {report.PagesOfOthers} older, {report.PagesUnreadable} unreadable");
        foreach (LogPage page in report.Pages)
        {
            string fault = page.Fault is null ? "" : ", " + page.Fault;
            Line(output, $"page {page.PageNumber} lap {page.Lap} durable {page.DurableLsn} tail {page.TailLsn} F {page.FlushPoint}{fault}");
            foreach (LogRecord r in page.Records)
                Line(output, $"  {r.Lsn} {r.Kind} slot {r.Slot} volume {r.VolumeId} extent {r.Extent} [{r.Fate}] {r.Text}");
        }

        return 0;
    }

    private static int ShowVolumes(TextWriter output, StoreFile file, bool asJson)
    {
        StoreImage image = StoreImage.Load(file);
        var used = new Dictionary<uint, (ulong Blocks, ulong Extents)>();
        var tree = new LayerTree(image);
        foreach (LayerNode layer in tree.Layers)
        {
            (ulong blocks, ulong extents) = used.GetValueOrDefault(layer.Id.Volume);
            used[layer.Id.Volume] = (blocks + tree.OwnedBlocks(layer), extents + (ulong)layer.Pages.Count);
        }

        var report = new VolumesReport(
        [
            .. image.Heads.Select(page => (page.Head, Used: used.GetValueOrDefault(page.VolumeId))).Select(v => new VolumeReport(
                v.Head.Head.Id, v.Head.Head.Uuid, v.Head.Head.Name, v.Head.Head.SizeBytes,
                v.Used.Blocks * Units.BlockBytes, v.Used.Extents, v.Head.Head.Epoch, v.Head.IsDeleting)
            {
                LengthBytes = v.Head.Head.IsAppendOnly ? image.LengthOf(v.Head.Head.Id) : null,
                Clients = v.Head.Head.IsAppendOnly ? image.AppendsOf(v.Head.Head.Id).Sum(p => p.Appends!.Clients.Count()) : null,
                Sealed = v.Head.Head.IsSealed,
            }),
        ]);
        if (TryJson(output, asJson, report, InspectJson.Default.VolumesReport)) return 0;
        Line(output, $"{report.Volumes.Count} volumes");
        foreach (VolumeReport v in report.Volumes)
        {
            Line(output, $"{v.Id} {v.Name} {SizeText.Format(v.SizeBytes)}, {SizeText.Format(v.UsedBytes)} used in {v.Extents} extents, "
                + (v.LengthBytes is { } length ? $"append-only, {length} bytes long, {v.Clients} clients, {(v.Sealed ? "sealed, " : "")}" : "")
                + $"epoch {v.Epoch}, {v.Uuid}{(v.Deleting ? ", being deleted" : "")}");
        }

        return 0;
    }

    private static int ShowLayers(TextWriter output, StoreFile file, bool asJson)
    {
        StoreImage image = StoreImage.Load(file);
        var tree = new LayerTree(image);
        Dictionary<uint, string> names = [];
        foreach (SlotPage head in image.Heads) names.TryAdd(head.VolumeId, head.Head.Head.Name);
        var report = new LayersReport([.. tree.Layers.Select(layer => ReportOf(tree, layer, names.GetValueOrDefault(layer.Id.Volume, "")))]);
        if (TryJson(output, asJson, report, InspectJson.Default.LayersReport)) return 0;
        Line(output, $"{report.Layers.Count} layers, {report.Layers.Count(layer => layer.Snapshot is not null)} of them snapshots");
        foreach (LayerReport l in report.Layers)
        {
            string what = l.Snapshot is null ? "written to" : $"snapshot {l.Snapshot}, cut {l.CutVersion}, {SizeText.Format(l.AloneBytes)} alone";
            string below = l.ParentLayer is null ? "" : l.ParentVolumeId == l.VolumeId ? $" on layer {l.ParentLayer}"
                : $" on layer {l.ParentLayer} of volume {l.ParentVolumeId} {names.GetValueOrDefault(l.ParentVolumeId!.Value, "")}";
            Line(output, $"{l.VolumeId} {l.Volume} layer {l.Layer}{below}: {what}, {SizeText.Format(l.UsedBytes)} used, "
                + $"{SizeText.Format(l.OwnedBytes)} owned in {l.Extents} extents{(l.Deleting ? ", being deleted" : "")}");
        }

        return 0;
    }

    private static LayerReport ReportOf(LayerTree tree, LayerNode layer, string volume)
    {
        SnapshotLayout? snapshot = layer.IsSnapshot ? layer.Head.Snapshot : null;
        return new LayerReport(
            layer.Id.Volume, volume, layer.Id.Layer, layer.Parent?.Volume, layer.Parent?.Layer, snapshot?.Name, snapshot?.Uuid, snapshot?.Cut,
            snapshot?.SizeBytes ?? layer.Head.Head.Head.SizeBytes, snapshot?.UnixSeconds, (ulong)layer.Pages.Count, layer.UsedBlocks * Units.BlockBytes,
            tree.OwnedBlocks(layer) * Units.BlockBytes, layer.IsSnapshot ? tree.BlocksAlone(layer) * Units.BlockBytes : 0, layer.IsDeleting);
    }

    private static int ShowMap(TextWriter output, StoreFile file, string volume, bool asJson)
    {
        StoreImage image = StoreImage.Load(file);
        var tree = new LayerTree(image);
        string? snapshot = volume.IndexOf('@', StringComparison.Ordinal) is >= 0 and var sign ? volume[(sign + 1)..] : null;
        if (snapshot is not null) volume = volume[..^(snapshot.Length + 1)];
        bool isId = uint.TryParse(volume, NumberStyles.None, CultureInfo.InvariantCulture, out uint id);
        // A name may be all digits: names go first.
        SlotPage head = image.Heads.FirstOrDefault(h => h.Head.Head.Name == volume)
            ?? image.Heads.FirstOrDefault(h => isId && h.VolumeId == id)
            ?? throw new InspectException($"there is no volume '{volume}' on '{file.Path}'; pfinspect volumes lists them");
        LayerNode? layer = snapshot is null ? tree.Find(new LayerId(head.VolumeId, head.Head.Layer))
            : tree.Layers.FirstOrDefault(node => node.Id.Volume == head.VolumeId && node is { IsSnapshot: true, IsDeleting: false } && node.Head.Snapshot.Name == snapshot);
        if (layer is null) throw new InspectException($"volume '{volume}' has no snapshot '{snapshot}'; pfinspect layers lists them");
        string name = head.Head.Head.Name + (snapshot is null ? "" : "@" + snapshot);
        var report = new MapReport(head.VolumeId, name, RunsOf(tree.Shown(layer)));
        if (TryJson(output, asJson, report, InspectJson.Default.MapReport)) return 0;
        Line(output, $"volume {report.VolumeId} {report.Name}, {report.Runs.Count} runs");
        foreach (MapRunReport run in report.Runs)
        {
            string place = run.Block == MetadataPage.UnknownBlock ? "lost" : $"block {run.Block}";
            Line(output, $"{run.OffsetBytes} +{run.LengthBytes} {place} slot {run.Slot} versions {run.VersionMin} to {run.VersionMax}");
        }

        return 0;
    }

    private static List<MapRunReport> RunsOf(IReadOnlyCollection<SlotPage> pages)
    {
        var runs = new List<MapRunReport>();
        foreach (SlotPage page in pages)
        {
            for (int i = 0; i < Units.BlocksPerExtent; i++)
            {
                BlockEntry entry = MetadataPage.Entry(page.Entries, i);
                if (entry.Block == 0) continue;
                ulong offset = ((ulong)page.Extent << Units.ExtentShift) + ((ulong)i << Units.BlockShift);
                MapRunReport? last = runs.Count > 0 ? runs[^1] : null;
                bool joins = last is not null && last.Slot == page.Slot && last.OffsetBytes + last.LengthBytes == offset
                    && (last.Block == MetadataPage.UnknownBlock
                        ? entry.Block == MetadataPage.UnknownBlock
                        : last.Block + (last.LengthBytes >> Units.BlockShift) == entry.Block);
                if (!joins)
                {
                    runs.Add(new MapRunReport(offset, Units.BlockBytes, entry.Block, page.Slot, entry.Version, entry.Version));
                    continue;
                }

                runs[^1] = last! with
                {
                    LengthBytes = last.LengthBytes + Units.BlockBytes,
                    VersionMin = Math.Min(last.VersionMin, entry.Version),
                    VersionMax = Math.Max(last.VersionMax, entry.Version),
                };
            }
        }

        return runs;
    }

    private static int ShowBadBlocks(TextWriter output, StoreFile file, bool asJson)
    {
        StoreImage image = StoreImage.Load(file);
        SortedDictionary<uint, uint> bad = image.BadBlocks();
        var holders = new Dictionary<uint, (uint Volume, ulong Offset)>();
        foreach (SlotPage page in image.Slots.Values.Where(p => bad.Count > 0 && p.Kind == MetadataKind.Extent))
        {
            for (int i = 0; i < Units.BlocksPerExtent; i++)
            {
                uint block = MetadataPage.Entry(page.Entries, i).Block;
                if (bad.ContainsKey(block))
                    holders[block] = (page.VolumeId, ((ulong)page.Extent << Units.ExtentShift) + ((ulong)i << Units.BlockShift));
            }
        }

        var report = new BadBlocksReport(
        [
            .. bad.Select(b => holders.TryGetValue(b.Key, out (uint Volume, ulong Offset) held)
                ? new BadBlockReport(b.Key, b.Value, held.Volume, held.Offset)
                : new BadBlockReport(b.Key, b.Value, null, null)),
        ]);
        if (TryJson(output, asJson, report, InspectJson.Default.BadBlocksReport)) return 0;
        Line(output, $"{report.Blocks.Count} bad blocks");
        foreach (BadBlockReport b in report.Blocks)
            Line(output, $"block {b.Block} slot {b.Slot}" + (b.VolumeId is null ? "" : $", volume {b.VolumeId} offset {b.OffsetBytes} still lies there"));
        return 0;
    }

    private static int ShowCheck(TextWriter output, StoreFile file, bool readData, bool asJson)
    {
        CheckReport report = StoreCheck.Run(StoreImage.Load(file), readData);
        int exit = report.Sound ? 0 : 1;
        if (TryJson(output, asJson, report, InspectJson.Default.CheckReport)) return exit;
        foreach (Problem p in report.Problems) Line(output, $"{p.Severity} {p.Rule}: {p.Where}: {p.What}");
        if (report.ProblemsFound > (ulong)report.Problems.Count)
            Line(output, $"and {report.ProblemsFound - (ulong)report.Problems.Count} more");
        Line(output, $"{report.Slots} slots, {report.Extents} extents, {report.BlocksReferenced} blocks referenced, {report.BlocksBad} bad, {report.BlocksFree} free, "
            + $"{report.LogRecordsReplayed} log records replayed, {report.LogRecordsSkipped} dropped"
            + (readData ? $", {report.BlocksRead} blocks read" : ""));
        output.WriteLine(report.Sound ? "sound" : "NOT SOUND");
        return exit;
    }

    private static bool TryJson<T>(TextWriter output, bool asJson, T value, JsonTypeInfo<T> type)
    {
        if (asJson) output.WriteLine(JsonSerializer.Serialize(value, type));
        return asJson;
    }

    private static void Pair<T>(TextWriter output, string name, T value) => Line(output, $"{name,-12} {value}");

    private static void Line(TextWriter output, string text) => output.WriteLine(text);

    private static int Fail(TextWriter error, string message, int code)
    {
        error.WriteLine("pfinspect: " + message.ReplaceLineEndings(" "));
        return code;
    }
}
