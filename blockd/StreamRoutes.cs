using System.IO.Pipelines;
using BlockServer.Cluster;
using BlockServer.Core;
using BlockServer.Core.Api;
using BlockServer.Io;
using BlockServer.Streams;
using Microsoft.Win32.SafeHandles;

namespace BlockServer.Blockd;

/// <summary>Streams in the admin API: snapshots go out, volumes come in.</summary>
internal sealed class StreamRoutes
{
    private readonly Daemon _daemon;
    private readonly Func<VolumeRecord, ApiCall, Task<VolumeInfo>> _describe;

    /// <summary>Routes to <paramref name="daemon"/>.</summary>
    public StreamRoutes(Daemon daemon, Func<VolumeRecord, ApiCall, Task<VolumeInfo>> describe)
    {
        _daemon = daemon;
        _describe = describe;
        Handlers = new(StringComparer.Ordinal)
        {
            ["GET volumes/{name}/snapshots/{snapshot}/stream"] = ExportAsync,
            ["POST volumes/{name}/stream"] = ImportAsync,
            ["GET volumes/{name}/import"] = ShowAsync,
            ["DELETE volumes/{name}/import"] = GiveUpAsync,
        };
    }

    /// <summary>By the key of their route.</summary>
    public Dictionary<string, Func<ApiCall, Task>> Handlers { get; }

    /// <summary>An import as the API shows it.</summary>
    public static ImportInfo? Describe(ImportRecord? import) => import is null ? null : new ImportInfo(
        import.StreamId, import.Base, import.Target, import.Cursor, StreamCursor.TryParse(import.Cursor)?.OffsetBytes ?? 0, import.IsActive);

    private async Task ExportAsync(ApiCall call)
    {
        VolumeRecord volume = AdminRoutes.VolumeOf(_daemon, call);
        if (VolumeDirectory.ImportFault(volume) is { } coming) throw new ApiException(409, coming.Code, coming.Detail);
        StoreHost host = _daemon.Stores.Find(volume.StoreId)
            ?? throw new ApiException(503, "disk-unavailable", "the volume's disk is not in service");
        IReadOnlyList<SnapshotInfo> known = await host.Thread.InvokeAsync(
            () => new ValueTask<IReadOnlyList<SnapshotInfo>>(host.Store.Snapshots(volume.Id)));
        SnapshotInfo target = Named(known, volume, call.Parts[3]);
        SnapshotInfo? basis = call.Query("base") is { } name ? Named(known, volume, name) : null;
        if (basis is not null && basis.CutVersion >= target.CutVersion && basis.Uuid != target.Uuid)
            throw new ApiException(409, "wrong-base", $"snapshot '{basis.Name}' is newer than '{target.Name}'");
        if (basis?.Uuid == target.Uuid) throw new ApiException(409, "wrong-base", "base and snapshot are the same");
        StreamCursor? from = null;
        if (call.Query("cursor") is { } text)
        {
            from = StreamCursor.TryParse(text);
            if (from is null || from.OffsetBytes > target.SizeBytes) throw new ApiException(400, "invalid-cursor", "this is no place in this stream", "cursor");
        }

        ICompressor? compressor = call.Query("compress") switch
        {
            null or "none" => null,
            "lz4" => Lz4.Instance ?? throw NoLz4(),
            _ => throw new ApiException(400, "invalid-query", "compress is lz4 or none", "compress"),
        };
        var header = new StreamHeader
        {
            StreamId = from?.StreamId ?? new SystemRandom().NextGuid(),
            VolumeUuid = volume.Uuid,
            VolumeName = volume.Name,
            SizeBytes = target.SizeBytes,
            Base = basis?.Uuid,
            BaseSizeBytes = basis?.SizeBytes ?? 0,
            Target = target.Uuid,
            TargetName = target.Name,
            UnixSeconds = target.UnixSeconds,
        };
        using SafeFileHandle? file = Handed(call);
        bool isImage = IsImage(call, file);
        Task SendAsync(PipeWriter output) => _daemon.Tasks.TrackAsync(
            new TaskSpec("export", $"{volume.Name}@{target.Name}", volume.Id, Unit: "bytes"),
            async (run, cancel) =>
            {
                var export = new StreamExport(host, volume.Id, header, compressor) { Progress = done => run.Report(done, header.SizeBytes) };
                if (file is null) await export.RunAsync(new PipeSink(output), from, cancel);
                else await ToFileAsync(export, new FileSink(file, isImage, compressor is not null, output), from, cancel);
                return header.SizeBytes;
            },
            size => $"{size} bytes have gone to the client", call.Aborted);
        await call.SendAsync(file is null ? StreamMedia.Type : StreamMedia.ReportType, file is null ? SendAsync : async output =>
        {
            try
            {
                await SendAsync(output);
            }
            catch (Exception e) when (e is IOException or UnauthorizedAccessException)
            {
                // It was said, and must arrive: a connection that is cut may lose it.
            }
        });
    }

    /// <summary>The client learns why its file cannot be written, or the snapshot not be read.</summary>
    private static async Task ToFileAsync(StreamExport export, FileSink sink, StreamCursor? from, CancellationToken cancel)
    {
        try
        {
            await export.RunAsync(sink, from, cancel);
        }
        catch (Exception e) when (e is IOException or UnauthorizedAccessException)
        {
            await sink.FailAsync(e.Message, cancel);
            throw;
        }
    }

    /// <summary>The file that the call names by its ticket, or null when it names none.</summary>
    private SafeFileHandle? Handed(ApiCall call)
    {
        if (call.Query("file") is not { } ticket) return null;
        return _daemon.HandedFiles?.Take(ticket) ?? throw new ApiException(404, "no-file", "no file was handed over with this ticket, or its sender has left");
    }

    private static bool IsImage(ApiCall call, SafeFileHandle? file) => call.Query("format") switch
    {
        null or "stream" => false,
        "raw" when file is not null => true,
        _ => throw new ApiException(400, "invalid-query", "format is stream or raw, of a file that was handed over", "format"),
    };

    private async Task ImportAsync(ApiCall call)
    {
        string name = call.Parts[1];
        if (!VolumeName.IsValid(name, out string? reason)) throw new ApiException(400, "invalid-name", reason, "name");
        Guid? storeId = call.Query("storeId") is not { } text ? null
            : Guid.TryParse(text, out Guid id) ? id : throw new ApiException(400, "invalid-query", "storeId must be the id of a disk", "storeId");
        bool keepsPart = call.QueryFlag("keep"), goesOn = call.QueryFlag("resume"), isImage = call.QueryFlag("image");
        bool? isThin = call.Query("thin") is null ? null : call.QueryFlag("thin");
        Stream body = call.LongBody();
        using SafeFileHandle? file = Handed(call);
        bool isRaw = IsImage(call, file);
        HandedImport? handed = file is null ? null : new HandedImport(file, isRaw);
        try
        {
            if (call.QueryFlag("check"))
            {
                await _daemon.Imports.CheckAsync(name, body, goesOn, isImage, call.Aborted);
                await call.AnswerNothingAsync();
                return;
            }

            VolumeRecord volume = await _daemon.Tasks.TrackAsync(
                new TaskSpec("import", name, _daemon.Directory.Find(name)?.Id, Unit: "bytes"),
                (run, cancel) => _daemon.Imports.RunAsync(name, storeId, body, Lz4.Instance, keepsPart, goesOn, isImage, cancel, run.Report, isThin, handed),
                v => $"'{v.Name}' has {v.SizeBytes} bytes", call.Aborted);
            await call.AnswerAsync(await _describe(volume, call), ApiJson.Default.VolumeInfo, 201);
        }
        catch (ImportException e)
        {
            throw new ApiException(e.Status, e.Code, e.Message);
        }
    }

    private async Task ShowAsync(ApiCall call)
    {
        string name = call.Parts[1];
        if (!VolumeName.IsValid(name, out string? reason)) throw new ApiException(400, "invalid-name", reason, "name");
        if (_daemon.Imports.FaultOf(name) is { } fault) throw new ApiException(fault.Status, fault.Code, fault.Message);
        if (Describe(_daemon.Directory.Find(name)?.Import) is not { } import) throw new ApiException(404, "no-import", $"nothing comes into '{name}'");
        await call.AnswerAsync(import, ApiJson.Default.ImportInfo);
    }

    private async Task GiveUpAsync(ApiCall call)
    {
        await _daemon.Imports.GiveUpAsync(AdminRoutes.VolumeOf(_daemon, call));
        await call.AnswerNothingAsync();
    }

    private static SnapshotInfo Named(IReadOnlyList<SnapshotInfo> known, VolumeRecord volume, string name) =>
        known.FirstOrDefault(s => s.Name == name)
            ?? throw new ApiException(404, "no-such-snapshot", $"'{volume.Name}' has no snapshot '{name}'; pfcli list_snapshot shows what there is");

    private static ApiException NoLz4() => new(503, "no-lz4", "liblz4 is not installed where blockd runs; install it (liblz4-1), or export with compress=none");
}
