using BlockServer.Core;
using BlockServer.Streams;

namespace BlockServer.Blockd;

/// <summary>How an import broke.</summary>
/// <param name="canGoOn">The rest of the stream would mend it.</param>
/// <param name="status">HTTP status.</param>
/// <param name="code">Stable word.</param>
/// <param name="detail">Sentence.</param>
internal sealed class ImportException(bool canGoOn, int status, string code, string detail) : Exception(detail)
{
    public bool CanGoOn { get; } = canGoOn;

    public int Status { get; } = status;

    public string Code { get; } = code;
}

/// <summary>
/// Takes what a source gives and writes it into a volume: the thread pool reads and checks while the loop writes. One use.
/// </summary>
internal sealed class StreamImport(IMoveSide host, uint volumeId, StreamHeader header, IImportSource source, ImportLimits limits, Func<string, Task> keep)
{
    private const int Batches = 4;

    private readonly Queue<(StreamBatch Batch, Task<IoStatus> Writing)> _writing = new();
    private readonly Stack<StreamBatch> _empty = new(Enumerable.Range(0, Batches).Select(_ => new StreamBatch(limits.BatchBytes)));
    private IBlockDevice _device = null!;
    private Task _settling = Task.CompletedTask;

    // A batch could not be written: what comes behind it is of no use, and no place behind it may be kept.
    private bool _hasFailed;

    /// <summary>Told how many bytes of the content have come, about every 2 MiB. Set before it runs.</summary>
    public Action<ulong>? Progress { get; init; }

    /// <summary>Reads until the stream is whole and everything of it durable. Throws <see cref="ImportException"/>; what was
    /// kept last by <c>keep</c> is durable in any case, and nothing is being written any more.</summary>
    public async Task RunAsync(CancellationToken cancel)
    {
        _device = await host.RunAsync(store => new ValueTask<IBlockDevice?>(store.OpenVolume(volumeId))) ?? throw Gone();
        StreamBatch batch = _empty.Pop();
        batch.Clear();
        ulong kept = source.OffsetBytes;
        try
        {
            while (!source.IsWhole)
            {
                if (!batch.HasRoom(StreamHeader.DataBytesMax))
                {
                    batch = await WriteAsync(batch);
                    Progress?.Invoke(source.OffsetBytes);
                    if (source.OffsetBytes - kept >= limits.KeepEveryBytes)
                    {
                        kept = source.OffsetBytes;
                        await _settling; // one after the other, and no further ahead of the disk than that
                        _settling = SettleAsync();
                    }
                }

                await source.TakeAsync(batch, cancel);
            }

            await FinishAsync(batch);
        }
        catch (ImportException e) when (e.CanGoOn && !_hasFailed)
        {
            // What has come is good, and need not come again.
            await FinishAsync(batch);
            throw;
        }
        finally
        {
            await _settling.ConfigureAwait(ConfigureAwaitOptions.SuppressThrowing | ConfigureAwaitOptions.ContinueOnCapturedContext);
            foreach ((_, Task writing) in _writing)
                await writing.ConfigureAwait(ConfigureAwaitOptions.SuppressThrowing | ConfigureAwaitOptions.ContinueOnCapturedContext);
        }

        await source.EndAsync(cancel);
    }

    /// <summary>Begins to write a batch; an empty one, as soon as there is one.</summary>
    private async Task<StreamBatch> WriteAsync(StreamBatch batch)
    {
        bool isBlank = header.Base is null;
        _writing.Enqueue((batch, host.RunAsync(_ => BatchWriter.ApplyAsync(_device, batch, isBlank))));
        if (_empty.Count == 0) await TakeBackAsync();
        StreamBatch next = _empty.Pop();
        next.Clear();
        return next;
    }

    private async Task TakeBackAsync()
    {
        (StreamBatch batch, Task<IoStatus> writing) = _writing.Dequeue();
        IoStatus status = await writing;
        if (status != IoStatus.Ok) throw Failed(status);
        _empty.Push(batch);
    }

    private async Task FinishAsync(StreamBatch last)
    {
        await WriteAsync(last);
        await _settling;
        await SettleAsync();
    }

    /// <summary>Makes everything durable that was accepted before the call, and keeps that place. More may be accepted and written
    /// meanwhile: whoever goes on from the place writes it again.</summary>
    private async Task SettleAsync()
    {
        string cursor = source.Place;
        // The batches are taken back by their owner, which fails for itself when one was not written.
        Task<IoStatus>[] written = [.. _writing.Select(w => w.Writing)];
        foreach (Task<IoStatus> one in written)
        {
            if (await one is var failed and not IoStatus.Ok) throw Failed(failed);
        }

        bool isSkipped = limits.Broken.HasFlag(BrokenImports.KeepEarly) || (limits.Broken.HasFlag(BrokenImports.OpenEarly) && source.IsWhole);
        IoStatus status = isSkipped ? IoStatus.Ok : await host.RunAsync(_ => _device.FlushAsync());
        if (status != IoStatus.Ok) throw Failed(status);
        await keep(cursor);
    }

    private static ImportException Gone() => new(false, 503, "disk-unavailable", "the volume was deleted meanwhile, or its disk does not serve it");

    private ImportException Failed(IoStatus status)
    {
        _hasFailed = true;
        return Say(status);
    }

    private static ImportException Say(IoStatus status) => status switch
    {
        IoStatus.NoSpace => new(true, 507, "no-space", "the disk is full"),
        IoStatus.Unavailable or IoStatus.ShuttingDown => new(true, 503, "disk-unavailable", $"the volume's disk does not serve ({status}); see pfcli list_disk"),
        _ => new(false, 503, "disk-unavailable", $"the volume's disk failed ({status}); nothing of the stream was taken"),
    };
}
