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
/// Takes the frames of a stream and writes them into a volume: the thread pool reads and checks while the loop writes. Nothing
/// of a frame is written before the whole frame was found good. One use.
/// </summary>
internal sealed class StreamImport(StoreHost host, uint volumeId, StreamHeader header, StreamDecoder decoder, Func<string, Task> keep)
{
    private const int BatchBytes = 2 << 20, Batches = 4;

    /// <summary>Content between two points from which the import can go on.</summary>
    private const ulong KeepEveryBytes = 64 << 20;

    private static readonly TimeSpan s_patience = TimeSpan.FromMinutes(5);

    private readonly Queue<(StreamBatch Batch, Task<IoStatus> Writing)> _writing = new();
    private readonly Stack<StreamBatch> _empty = new(Enumerable.Range(0, Batches).Select(_ => new StreamBatch(BatchBytes)));
    private readonly byte[] _frame = new byte[StreamFrame.Size];
    private readonly byte[] _payload = GC.AllocateUninitializedArray<byte>(StreamHeader.DataBytesMax);
    private IBlockDevice _device = null!;
    private Task _settling = Task.CompletedTask;

    /// <summary>Told how many bytes of the content have come, about every 2 MiB. Set before it runs.</summary>
    public Action<ulong>? Progress { get; init; }

    /// <summary>Reads until the stream is whole and everything of it durable. Throws <see cref="ImportException"/>; what was
    /// kept last by <c>keep</c> is durable in any case, and nothing is being written any more.</summary>
    public async Task RunAsync(Stream body, CancellationToken cancel)
    {
        _device = await host.Thread.InvokeAsync(() => new ValueTask<IBlockDevice?>(host.Store.OpenVolume(volumeId))) ?? throw Gone();
        StreamBatch batch = _empty.Pop();
        batch.Clear();
        ulong kept = decoder.Cursor.OffsetBytes;
        try
        {
            while (!decoder.IsWhole)
            {
                if (!batch.HasRoom(StreamHeader.DataBytesMax))
                {
                    batch = await WriteAsync(batch);
                    Progress?.Invoke(decoder.Cursor.OffsetBytes);
                    if (decoder.Cursor.OffsetBytes - kept >= KeepEveryBytes)
                    {
                        kept = decoder.Cursor.OffsetBytes;
                        await _settling; // one after the other, and no further ahead of the disk than that
                        _settling = SettleAsync();
                    }
                }

                await TakeFrameAsync(body, batch, cancel);
            }

            await FinishAsync(batch);
        }
        catch (ImportException e) when (e.CanGoOn)
        {
            // What has come is good, and need not come again.
            await FinishAsync(batch);
            throw;
        }
        finally
        {
            await _settling.ContinueWith(static _ => { }, TaskScheduler.Default);
            foreach ((_, Task<IoStatus> writing) in _writing) await writing.ContinueWith(static _ => { }, TaskScheduler.Default);
        }

        if (await ReadAsync(body, _frame.AsMemory(0, 1), cancel) > 0)
            throw new ImportException(false, 400, "bad-stream", "bytes follow the end of the stream; nothing of it was taken");
    }

    private async Task TakeFrameAsync(Stream body, StreamBatch batch, CancellationToken cancel)
    {
        await FillAsync(body, _frame, cancel);
        if (decoder.ReadFrame(_frame, out StreamFrame frame) is { } fault) throw Bad(fault);
        bool isData = frame.Kind == StreamKind.Data, isRaw = frame.Encoding == StreamEncoding.Raw;
        Memory<byte> content = isData ? batch.Room((int)frame.LengthBytes) : default;
        Memory<byte> payload = isData && isRaw ? content : _payload.AsMemory(0, frame.PayloadBytes);
        await FillAsync(body, payload, cancel);
        if (decoder.Accept(frame, payload.Span, content.Span) is { } broken) throw Bad(broken);
        if (frame.Kind != StreamKind.End) batch.Add(frame.Kind, frame.OffsetBytes, frame.LengthBytes);
    }

    private async Task FillAsync(Stream body, Memory<byte> target, CancellationToken cancel)
    {
        while (target.Length > 0)
        {
            int count = await ReadAsync(body, target, cancel);
            if (count == 0) throw new ImportException(true, 400, "truncated-stream", decoder.Truncated);
            target = target[count..];
        }
    }

    private static async Task<int> ReadAsync(Stream body, Memory<byte> target, CancellationToken cancel)
    {
        ValueTask<int> reading = body.ReadAsync(target, cancel);
        if (reading.IsCompletedSuccessfully) return reading.Result;
        try
        {
            return await reading.AsTask().WaitAsync(s_patience, cancel);
        }
        catch (Exception e) when (e is IOException or OperationCanceledException or TimeoutException or BadHttpRequestException)
        {
            throw new ImportException(true, 400, "interrupted-stream", "the connection broke before the stream was whole");
        }
    }

    /// <summary>Begins to write a batch; an empty one, as soon as there is one.</summary>
    private async Task<StreamBatch> WriteAsync(StreamBatch batch)
    {
        bool isBlank = header.Base is null;
        _writing.Enqueue((batch, host.Thread.InvokeAsync(() => BatchWriter.ApplyAsync(_device, batch, isBlank))));
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
        string cursor = decoder.Cursor.ToString();
        // The batches are taken back by their owner, which fails for itself when one was not written.
        Task<IoStatus>[] written = [.. _writing.Select(w => w.Writing)];
        foreach (Task<IoStatus> one in written)
        {
            if (await one is var failed and not IoStatus.Ok) throw Failed(failed);
        }

        IoStatus status = await host.Thread.InvokeAsync(_device.FlushAsync);
        if (status != IoStatus.Ok) throw Failed(status);
        await keep(cursor);
    }

    private static ImportException Bad(string fault) => new(false, 400, "bad-stream", fault + "; nothing of the stream was taken");

    private static ImportException Gone() => new(false, 503, "disk-unavailable", "the volume was deleted meanwhile, or its disk does not serve it");

    private static ImportException Failed(IoStatus status) => status switch
    {
        IoStatus.NoSpace => new(false, 507, "no-space", "the disk is full; nothing of the stream was taken"),
        IoStatus.Unavailable or IoStatus.ShuttingDown => new(true, 503, "disk-unavailable", $"the volume's disk does not serve ({status}); see pfcli list_disk"),
        _ => new(false, 503, "disk-unavailable", $"the volume's disk failed ({status}); nothing of the stream was taken"),
    };
}
