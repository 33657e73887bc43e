using System.Buffers.Binary;
using System.Runtime.CompilerServices;
using System.Runtime.InteropServices;
using BlockServer.Core;

namespace BlockServer.Protocols.Nbd;

public sealed partial class NbdTransmission
{
    // Runs of one context in a block status reply: 16 KiB in extended mode; the client asks again for the rest.
    private const int StatusRunsMax = 1000;

    // Runs of all contexts of a reply.
    private const int StatusRunsInAll = 4000;

    // Runs of one sparse read: beyond it the chunks cost more than the zeros that they save.
    private const int ReadRunsMax = 32;

    /// <summary>One request from its header until its reply has been sent. Pooled by its session.</summary>
    private sealed class Slot
    {
        public const int HeadBytes = 192;

        private readonly NbdTransmission _owner;
        private readonly Action _onDone;
        private ReadOnlyMemory<byte>[] _parts = new ReadOnlyMemory<byte>[2];
        private List<MapRun>? _runs;
        private List<NbdStatusRun>? _status;
        private List<int>? _statusEnds; // of each context; none of one that was not asked for
        private ValueTaskAwaiter<NbdError> _done;
        private ulong _chargedBytes;
        private bool _isInside;

        public Slot(NbdTransmission owner)
        {
            _owner = owner;
            _onDone = OnDone;
        }

        /// <summary>Small replies, and on the way in the payload of a BLOCK_STATUS.</summary>
        public byte[] Head { get; } = GC.AllocateUninitializedArray<byte>(HeadBytes, pinned: true);

        public NbdRequest Request { get; private set; }

        public ulong BeganNanos { get; private set; }

        /// <summary>How long it waited to be let in.</summary>
        public ulong QueuedNanos { get; private set; }

        public int WindowBytes { get; private set; }

        public IoBuffer? Buffer { get; set; }

        /// <summary>Where the data begins in the buffer: offset modulo 4096, so that the device needs no copy.</summary>
        public int Lead { get; set; }

        public int PartCount { get; private set; }

        public Slot? Next { get; set; }

        public void Begin(in NbdRequest request, int windowBytes, ulong nowNanos)
        {
            (Request, WindowBytes, BeganNanos) = (request, windowBytes, nowNanos);
            (PartCount, Lead, Buffer, QueuedNanos) = (0, 0, null, 0);
        }

        /// <summary>The volume has let it in, now.</summary>
        public void OnAdmitted(ulong chargedBytes)
        {
            (_isInside, _chargedBytes) = (true, chargedBytes);
            QueuedNanos = _owner._loop.NowNanos - BeganNanos;
        }

        /// <summary>The device is done with it.</summary>
        public void LeaveDevice()
        {
            if (!_isInside) return;
            _isInside = false;
            _owner._admission!.Exit(_chargedBytes);
        }

        public void End()
        {
            LeaveDevice();
            _parts.AsSpan(0, PartCount).Clear();
            PartCount = 0;
            Buffer?.Return();
            Buffer = null;
        }

        public void AddTo(SendBatch batch)
        {
            for (int i = 0; i < PartCount; i++) batch.Add(_parts[i]);
        }

        public void Refuse(NbdError error)
        {
            NbdTransmission o = _owner;
            ReadOnlySpan<byte> why = "the server is shutting down"u8;
            if (error != NbdError.Shutdown)
            {
                Request.Fault(
                    o._mode, o._device.SizeBytes, o._export.IsReadOnly || o._device.IsReadOnly, o._hasContext,
                    Units.RequestBytesMax, out why);
            }

            Answer(error, why);
            o.OnReady(this, error);
        }

        public void Start(int payloadBytes)
        {
#pragma warning disable CA2012 // The awaiter is kept in the slot and asked once, in OnDone.
            _done = RunAsync(payloadBytes).GetAwaiter();
#pragma warning restore CA2012
            if (_done.IsCompleted) OnDone();
            else _done.UnsafeOnCompleted(_onDone);
        }

        private void OnDone()
        {
            NbdError error;
            try
            {
                error = _done.GetResult();
            }
#pragma warning disable CA1031 // A bug below must end this session through RunAsync, not the loop.
            catch (Exception bug)
#pragma warning restore CA1031
            {
                _owner.OnBug(this, bug);
                return;
            }

            _owner.OnReady(this, error);
        }

        [AsyncMethodBuilder(typeof(LoopMethodBuilder<>))]
        private async ValueTask<NbdError> RunAsync(int payloadBytes)
        {
            IBlockDevice device = _owner._device;
            NbdCommandFlags flags = Request.Flags;
            WriteFlags write = (flags & NbdCommandFlags.Fua) != 0 ? WriteFlags.Fua : WriteFlags.None;
            switch (Request.Command)
            {
                case NbdCommand.Read:
                    return await ReadAsync(device);
                case NbdCommand.Write:
                    if (Buffer is null) return AnswerStatus(IoStatus.Ok);
                    return AnswerStatus(await device.WriteAsync(
                        Request.OffsetBytes, Buffer.Slice(Lead, (int)Request.LengthBytes), write));
                case NbdCommand.Flush:
                    return AnswerStatus(await device.FlushAsync());
                case NbdCommand.Trim:
                    return AnswerStatus(await device.TrimAsync(Request.OffsetBytes, Request.LengthBytes, write));
                case NbdCommand.Cache:
                    return AnswerStatus(await device.PrefetchAsync(Request.OffsetBytes, Request.LengthBytes));
                case NbdCommand.WriteZeroes:
                    if ((flags & NbdCommandFlags.NoHole) != 0) write |= WriteFlags.NoHole;
                    if ((flags & NbdCommandFlags.FastZero) != 0) write |= WriteFlags.FastOnly;
                    IoStatus status = await device.WriteZeroesAsync(Request.OffsetBytes, Request.LengthBytes, write);
                    // ENOTSUP is reserved for FAST_ZERO.
                    if (status == IoStatus.NotSupported && (flags & NbdCommandFlags.FastZero) == 0)
                        status = IoStatus.Invalid;
                    return AnswerStatus(status);
                default:
                    return await StatusAsync(device, payloadBytes);
            }
        }

        [AsyncMethodBuilder(typeof(LoopMethodBuilder<>))]
        private async ValueTask<NbdError> ReadAsync(IBlockDevice device)
        {
            if (Buffer is null) return AnswerStatus(IoStatus.Ok); // length 0
            int length = (int)Request.LengthBytes;
            ReadResult read = await device.ReadAsync(Request.OffsetBytes, Buffer.Slice(Lead, length));
            if (read.Status != IoStatus.Ok) return AnswerStatus(read.Status);
            bool mayFragment = _owner._mode != NbdReplyMode.Simple
                && (Request.Flags & NbdCommandFlags.DontFragment) == 0;
            if (read.HasHoles && mayFragment)
            {
                // The map is taken after the data: a block written in between was a hole when the data was read and is
                // sent as the zeros that were read; a block trimmed in between is sent as the hole that it is now. Both
                // are answers that a read concurrent with that change may give.
                _runs ??= new List<MapRun>(ReadRunsMax);
                IoStatus mapped = await device.MapAsync(Request.OffsetBytes, (ulong)length, ReadRunsMax, _runs);
                if (mapped == IoStatus.Ok && AnswerSparse(length)) return NbdError.None;
            }

            int size = NbdReplyHeader.ReadSize(_owner._mode);
            Memory<byte> reply = WithHeader(size, 0, length);
            if (_owner._mode == NbdReplyMode.Simple)
                NbdReplyHeader.WriteSimple(reply.Span, NbdError.None, Request.Cookie);
            else
                NbdReplyHeader.WriteData(reply.Span, _owner._mode, true, Request, Request.OffsetBytes, length);
            AddPart(reply);
            return NbdError.None;
        }

        /// <summary>Answers in data and hole chunks; false when the map does not cover the range in few enough runs.</summary>
        private bool AnswerSparse(int length)
        {
            ulong covered = 0;
            foreach (MapRun run in _runs!) covered += run.LengthBytes;
            if (covered != (ulong)length) return false;

            if (_parts.Length < 2 * _runs.Count) _parts = new ReadOnlyMemory<byte>[2 * ReadRunsMax];
            NbdReplyMode mode = _owner._mode;
            int headers = 0; // chunk headers are laid from the front of the headroom on: 32 * 48 bytes fit
            int done = 0;
            foreach (MapRun run in _runs)
            {
                int bytes = (int)run.LengthBytes;
                bool isLast = done + bytes == length;
                ulong offset = Request.OffsetBytes + (ulong)done;
                Memory<byte> room = Buffer!.WithHeader(IoBuffer.HeadroomBytes, 0).Slice(headers, NbdReplyHeader.SizeMax);
                headers += NbdReplyHeader.SizeMax;
                int size = run.IsHole
                    ? NbdReplyHeader.WriteHole(room.Span, mode, isLast, Request, offset, (uint)bytes)
                    : NbdReplyHeader.WriteData(room.Span, mode, isLast, Request, offset, bytes);
                AddPart(room[..size]);
                if (!run.IsHole) AddPart(Buffer.Slice(Lead + done, bytes));
                done += bytes;
            }

            return true;
        }

        [AsyncMethodBuilder(typeof(LoopMethodBuilder<>))]
        private async ValueTask<NbdError> StatusAsync(IBlockDevice device, int payloadBytes)
        {
            ulong length = Request.LengthBytes, wanted = ulong.MaxValue;
            if (payloadBytes > 0 && !ReadFilter(payloadBytes, out length, out wanted))
            {
                Answer(NbdError.Invalid, "malformed block status payload"u8);
                return NbdError.Invalid;
            }

            if (length == 0 || Request.OffsetBytes > device.SizeBytes || length > device.SizeBytes - Request.OffsetBytes)
            {
                Answer(NbdError.Invalid, "length 0 or past the end of the export"u8);
                return NbdError.Invalid;
            }

            if (wanted == 0) return AnswerStatus(IoStatus.Ok);
            IReadOnlyList<NbdContext> contexts = _owner._contexts;
            bool one = (Request.Flags & NbdCommandFlags.RequestOne) != 0;
            int runsMax = one ? 1 : Math.Min(StatusRunsMax, StatusRunsInAll / contexts.Count);
            (_status ??= new List<NbdStatusRun>(ReadRunsMax)).Clear();
            (_statusEnds ??= []).Clear();
            for (int i = 0; i < contexts.Count; i++)
            {
                if ((wanted & (1UL << i)) != 0)
                {
                    IoStatus status = await DescribeAsync(device, contexts[i], length, runsMax);
                    if (status != IoStatus.Ok) return AnswerStatus(status);
                }

                _statusEnds.Add(_status.Count);
            }

            int room = 64 * contexts.Count + 16 * _status.Count;
            Buffer = _owner._loop.Buffers.TryRent(room) ?? await _owner._loop.Buffers.RentAsync(room);
            AddPart(Buffer.Data[..WriteExtents(Buffer.Data.Span)]);
            return NbdError.None;
        }

        [AsyncMethodBuilder(typeof(LoopMethodBuilder<>))]
        private async ValueTask<IoStatus> DescribeAsync(IBlockDevice device, NbdContext context, ulong length, int runsMax)
        {
            if (!ReferenceEquals(context, NbdContext.BaseAllocation))
                return await _owner._export.Contexts!.MapAsync(context, Request.OffsetBytes, length, runsMax, _status!);
            _runs ??= new List<MapRun>(ReadRunsMax);
            IoStatus status = await device.MapAsync(Request.OffsetBytes, length, runsMax, _runs);
            foreach (MapRun run in _runs) _status!.Add(new NbdStatusRun(run.LengthBytes, run.IsHole ? 3u : 0u)); // hole, reads as zeros
            return status;
        }

        /// <summary>Payload: effect length u64, then context ids u32. <paramref name="wanted"/> has a bit for each context.</summary>
        private bool ReadFilter(int payloadBytes, out ulong length, out ulong wanted)
        {
            (length, wanted) = (0, 0);
            if (payloadBytes < 8 || (payloadBytes - 8) % 4 != 0) return false;
            ReadOnlySpan<byte> payload = Head.AsSpan(0, payloadBytes);
            length = BinaryPrimitives.ReadUInt64BigEndian(payload);
            for (int at = 8; at < payloadBytes; at += 4)
            {
                uint index = BinaryPrimitives.ReadUInt32BigEndian(payload[at..]) - NbdWire.FirstContextId;
                if (index >= (uint)_owner._contexts.Count || (wanted & (1UL << (int)index)) != 0) return false; // unknown, or named twice
                wanted |= 1UL << (int)index;
            }

            return true;
        }

        /// <summary>A chunk for each context. Compact: context u32, then (length u32, flags u32). Extended: context u32, count
        /// u32, then (u64, u64).</summary>
        private int WriteExtents(Span<byte> target)
        {
            NbdReplyMode mode = _owner._mode;
            bool extended = mode == NbdReplyMode.Extended;
            NbdChunk type = extended ? NbdChunk.BlockStatusExt : NbdChunk.BlockStatus;
            int at = 0, first = 0;
            for (int i = 0; i < _statusEnds!.Count; i++)
            {
                int end = _statusEnds[i], count = end - first;
                if (count == 0) continue;
                int payload = extended ? 8 + 16 * count : 4 + 8 * count;
                at += NbdReplyHeader.WriteChunk(target[at..], mode, end == _status!.Count, type, Request, payload);
                BinaryPrimitives.WriteUInt32BigEndian(target[at..], NbdWire.FirstContextId + (uint)i);
                at += 4;
                if (extended)
                {
                    BinaryPrimitives.WriteUInt32BigEndian(target[at..], (uint)count);
                    at += 4;
                }

                for (; first < end; first++)
                {
                    NbdStatusRun run = _status[first];
                    if (extended)
                    {
                        BinaryPrimitives.WriteUInt64BigEndian(target[at..], run.LengthBytes);
                        BinaryPrimitives.WriteUInt64BigEndian(target[(at + 8)..], run.Flags);
                        at += 16;
                    }
                    else
                    {
                        BinaryPrimitives.WriteUInt32BigEndian(target[at..], (uint)run.LengthBytes);
                        BinaryPrimitives.WriteUInt32BigEndian(target[(at + 4)..], run.Flags);
                        at += 8;
                    }
                }
            }

            return at;
        }

        private NbdError AnswerStatus(IoStatus status)
        {
            NbdError error = NbdReplyHeader.ErrorOf(status, out ReadOnlySpan<byte> why);
            Answer(error, why);
            return error;
        }

        private void Answer(NbdError error, ReadOnlySpan<byte> why)
        {
            int size = NbdReplyHeader.WriteAnswer(Head, _owner._mode, Request, error, why);
            AddPart(MemoryMarshal.CreateFromPinnedArray(Head, 0, size));
        }

        /// <summary>Memory of a header directly in front of data that begins <paramref name="skip"/> bytes into the range.</summary>
        private Memory<byte> WithHeader(int headerBytes, int skip, int dataBytes)
        {
            int dataStart = Lead + skip;
            return Buffer!.WithHeader(IoBuffer.HeadroomBytes, dataStart + dataBytes)
                .Slice(IoBuffer.HeadroomBytes + dataStart - headerBytes, headerBytes + dataBytes);
        }

        private void AddPart(ReadOnlyMemory<byte> part) => _parts[PartCount++] = part;
    }
}
