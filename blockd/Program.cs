using System.CommandLine;
using System.Reflection;
using System.Runtime.InteropServices;
using BlockServer.Io;

namespace BlockServer.Blockd;

internal static class Program
{
    /// <summary>The product's version.</summary>
    public static string Version { get; } =
        typeof(Program).Assembly.GetCustomAttribute<AssemblyInformationalVersionAttribute>()?.InformationalVersion ?? "0";

    private static async Task<int> Main(string[] args)
    {
        var root = new RootCommand(
            """
            blockd serves crash-safe, checksummed virtual disks ("volumes") over NBD.

            Everything lives in one directory (--data-dir). The first start makes a store file, metadata and the admin token.
            Settings come from the command line, else from the environment (BLOCKD_STORE_SIZE=20g; several values separated by
            spaces), else from the JSON file of --config or $BLOCKD_CONFIG ({"store-size": "20g", "nbd": ["127.0.0.1:10809"]}).
            Sizes are binary: 512m, 20g, 4t. Exit code: 0 stopped, 1 could not start, 2 wrong settings, 3 a bug, 4 a disk does not answer.
            Ctrl-C or SIGTERM stops it cleanly. Try: blockd --data-dir /tmp/b --store-size 4g --create-volume demo:1g
            """);
        var config = new Option<string?>("--config") { HelpName = "FILE", Description = "JSON file with settings, named as here without the dashes. Default: $BLOCKD_CONFIG." };
        root.Options.Add(config);
        var options = new Dictionary<string, Option>();
        foreach ((string name, string value, _, string help) in SettingsReader.All)
        {
            Option option = value.Length == 0
                ? new Option<bool>("--" + name) { Description = help }
                : new Option<string[]>("--" + name)
                {
                    // One value each time; whether it may be given again is the reader's to say, by name.
                    Description = help, HelpName = value, Arity = ArgumentArity.OneOrMore, AllowMultipleArgumentsPerToken = false,
                };
            options.Add(name, option);
            root.Options.Add(option);
        }

        root.SetAction(async (parsed, _) =>
        {
            try
            {
                var sources = new SettingsSources();
                if ((parsed.GetValue(config) ?? Environment.GetEnvironmentVariable(SettingsSources.Prefix + "CONFIG")) is { Length: > 0 } file)
                    sources.AddFile(file);
                sources.AddEnvironment(Variables());
                foreach ((string name, Option option) in options)
                {
                    if (parsed.GetResult(option) is not { Implicit: false }) continue;
                    sources.AddArgument(name, option is Option<bool> flag ? [parsed.GetValue(flag) ? "true" : "false"] : parsed.GetValue((Option<string[]>)option)!);
                }

                foreach (string warning in sources.Warnings) await Console.Error.WriteLineAsync("blockd: " + warning);
                Settings settings = sources.Read(DefaultDataDir(), (ulong)GC.GetGCMemoryInfo().TotalAvailableMemoryBytes);
                return await RunAsync(settings);
            }
            catch (SettingException e)
            {
                return Refuse(e.Message, 2);
            }
            catch (Exception e) when (e is StartException or Core.MetaException or IOException or InvalidDataException or UnauthorizedAccessException
                or System.Security.Cryptography.CryptographicException or Microsoft.Data.Sqlite.SqliteException)
            {
                return Refuse(e.Message, 1);
            }
        });
        ParseResult line = root.Parse(args, new ParserConfiguration { ResponseFileTokenReplacer = null });
        if (line.Errors.Count > 0)
        {
            string wrong = line.UnmatchedTokens.FirstOrDefault(t => t.StartsWith("--", StringComparison.Ordinal)) is { } token
                ? SettingsSources.Unknown(token.TrimStart('-').Split('=')[0], null).Message
                : line.Errors[0].Message.TrimEnd('.');
            return Refuse(wrong + "; see blockd --help", 2);
        }

        // The daemon handles signals itself and takes the time that it needs.
        return await line.InvokeAsync(new InvocationConfiguration { ProcessTerminationTimeout = null });
    }

    private static int Refuse(string message, int code)
    {
        Console.Error.WriteLine("blockd: " + message);
        return code;
    }

    private static string DefaultDataDir()
    {
        string? data = Environment.GetEnvironmentVariable("XDG_DATA_HOME");
        if (string.IsNullOrEmpty(data)) data = Path.Combine(Environment.GetFolderPath(Environment.SpecialFolder.UserProfile), ".local", "share");
        return Path.Combine(data, "blockd");
    }

    private static IEnumerable<KeyValuePair<string, string>> Variables() =>
        Environment.GetEnvironmentVariables().Cast<System.Collections.DictionaryEntry>()
            .Select(v => KeyValuePair.Create((string)v.Key, v.Value as string ?? ""));

    private static async Task<int> RunAsync(Settings settings)
    {
        TextWriter output = Console.Out; // of the client in --stdio mode, where nothing is written to it
        var stop = new TaskCompletionSource(TaskCreationOptions.RunContinuationsAsynchronously);
        using PosixSignalRegistration interrupt = PosixSignalRegistration.Create(PosixSignal.SIGINT, OnSignal);
        using PosixSignalRegistration terminate = PosixSignalRegistration.Create(PosixSignal.SIGTERM, OnSignal);

        // nbdcopy -- [ blockd --stdio EXPORT ... ] hands over a listening socket, nbd_connect_command a connected one.
        int sockets = SystemdSockets.Take();
        var watch = new StartWatch();
        Task<Daemon> starting = Daemon.StartAsync(settings, sockets, Log, watch);
        await Task.WhenAny(starting, stop.Task);
        if (!starting.IsCompleted && await Task.WhenAny(starting, Task.Delay(TimeSpan.FromSeconds(settings.StopWaitSeconds))) != starting)
        {
            Log($"stopped while {watch.DiskPath ?? "the data directory"} was being opened: it was not done within {settings.StopWaitSeconds} s");
            return 4;
        }

        Daemon daemon = await starting;
        await using ThreadOrder? order = settings.BackgroundNice > 0 ? new ThreadOrder(new BackgroundThreads(daemon.Threads, settings.BackgroundNice), Log) : null;
        using PosixSignalRegistration hangUp = PosixSignalRegistration.Create(PosixSignal.SIGHUP, context =>
        {
            context.Cancel = true; // it means: look at your files again
            if (daemon.Tls?.Look() == true) Log("the TLS files were read again");
        });
        int code = 0;
        try
        {
            await using AdminApi? api = settings.Api.Count > 0 ? await AdminApi.StartAsync(daemon, settings.Api) : null;
            if (settings.Stdio is null) await Greeting.WriteAsync(output, daemon);
            else foreach (string warning in daemon.Warnings) Log("warning: " + warning);
            Notify(SystemdNotify.Ready);
            await using SystemdWatchdog? watchdog = StartWatchdog(daemon);
            Task ended = settings.Stdio is null || sockets > 0 ? stop.Task : daemon.ServeOneAsync(0);
            Task first = await Task.WhenAny(ended, stop.Task, daemon.LoopFailed.Task);
            if (first == daemon.LoopFailed.Task)
            {
                Log("a loop ended by a bug, the daemon stops; the stores recover at the next start: " + await daemon.LoopFailed.Task);
                code = 3;
            }
            else
            {
                await first;
            }
        }
        finally
        {
            Notify(SystemdNotify.Stopping);
            if (!await daemon.StopAsync(Log) && code == 0) code = 4;
        }

        if (code == 0 && settings.Stdio is null) await output.WriteLineAsync("stopped");
        return code;

        void OnSignal(PosixSignalContext context)
        {
            context.Cancel = true;
            stop.TrySetResult();
        }

        static void Notify(string state)
        {
            if (Send(state) is { } trouble) Log(trouble);
        }

        static string? Send(string state) => SystemdNotify.Send(state, Environment.GetEnvironmentVariable("NOTIFY_SOCKET"));

        static SystemdWatchdog? StartWatchdog(Daemon daemon)
        {
            TimeSpan? every = SystemdWatchdog.EveryOf(
                Environment.GetEnvironmentVariable("WATCHDOG_USEC"), Environment.GetEnvironmentVariable("WATCHDOG_PID"), Environment.ProcessId);
            if (every is not { } often) return null;
            var watchdog = new SystemdWatchdog(daemon.Threads, often, Send, Log);
            watchdog.Start();
            return watchdog;
        }

        static void Log(string line)
        {
            LogTail.Instance.Add(Io.SystemClock.Instance.UtcNow, line);
            Console.Error.WriteLine(line);
        }
    }
}
